use anyhow::Result;
use std::path::PathBuf;
pub fn build() -> Result<PathBuf> {
    Ok(crate::run::target().join("bpf/seaway.o"))
}
