//! The documents that guests read: OpenStack, EC2 and NoCloud, rendered from one source.
