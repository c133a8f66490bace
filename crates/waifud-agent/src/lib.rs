//! The node's logic: the durable copy, plans, one driver per instance, status.
