//! The control server's logic: requests, placement, events, templates, the agents' watch.
