//! The PIDs of the lab's processes on the host, in `pids.json`.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The contents of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pids {
    pub guard: i32,
    /// The name of each running machine and the PID of its init, "outside" first.
    pub inits: Vec<(String, i32)>,
}

impl Pids {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("pids.json");
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        // Replaced by a rename, so that readers never see an incomplete file.
        let new = dir.join("pids.json.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, dir.join("pids.json"))?;
        Ok(())
    }
}
