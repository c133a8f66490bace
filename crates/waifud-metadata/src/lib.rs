//! The metadata service: who asks, which document, and how much of it at once.
