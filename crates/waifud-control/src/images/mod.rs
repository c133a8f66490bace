//! Templates, and the image files that they point at: uploads, downloads and the image store.

pub mod catalog;
pub(crate) mod downloads;
pub(crate) mod image_file;
pub(crate) mod image_space;
pub(crate) mod image_store;
pub(crate) mod problems;
pub(crate) mod service;
pub(crate) mod templates;
