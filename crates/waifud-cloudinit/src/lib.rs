//! The documents that guests read: OpenStack, EC2 and NoCloud, rendered from one source.
//!
//! ```text
//!  Source ── render ──► Documents ── seal ──► SealedBundle        (waifud)
//!                       Documents ◄── open ── ciphertext + key    (metadatad)
//!                           └── answer(request) ──► Answer        (metadatad, only for the guest of the documents)
//! ```
//!
//! Everything here is pure. Input is validated by [`validate_user_data`] and [`SshKey`], so rendering cannot fail.

mod answer;
mod bundle;
mod cidata;
mod documents;
mod iso9660;
mod network_config;
mod nocloud;
mod render;
mod reporting;
mod source;
mod ssh_key;
mod token;
mod user_data;
mod vendor;
mod yaml;

pub use answer::{Answer, GuestRequest, Method, path_of};
pub use bundle::{BundleError, SEAL_ENTROPY, SealedBundle, digest_of, open, seal};
pub use documents::Documents;
pub use render::render;
pub use reporting::{ReportSettings, UserDataKey, key_of_module, report_settings};
pub use source::{NicAddress, NicDoc, Source, VendorOptions, instance_id, next_instance_id};
pub use ssh_key::{SSH_KEY_TYPES, SshKey, SshKeyError};
pub use token::{TTL_MAX, Tokens};
pub use user_data::{UserDataError, UserDataKind, unpack_user_data, validate_user_data};
pub use vendor::{PHONE_HOME_PATH, REPORT_PATH};
