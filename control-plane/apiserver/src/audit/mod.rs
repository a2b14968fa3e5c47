//! The audit log: who asked for what, when, and what came of it, as `audit.k8s.io/v1` says.
//!
//! ```text
//! pipeline -> Policy::decide -> Recorder -- stages --> Log (a file that is rotated, or standard output)
//! ```
//!
//! Without a policy file nothing is made of a request. Deliberately absent: the webhook backend.

mod event;
mod log;
mod policy;
mod response;

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;

use self::log::Log;
pub(crate) use self::response::finish;
pub use self::{
    event::{Arrival, Level, Recorder, Stage},
    policy::{Policy, Subject},
};

/// Where events go and how files are rotated; the defaults are upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// A `Policy` in YAML or JSON; without one there is no audit log.
    pub policy_file: Option<PathBuf>,
    /// `-` is standard output; without one there is no audit log.
    pub log_path: Option<PathBuf>,
    /// Days that rotated files are kept; 0 is forever.
    pub max_age: u32,
    /// Rotated files that are kept; 0 is all.
    pub max_backups: u32,
    /// Megabytes before a file is rotated; 0 is 100.
    pub max_size: u32,
}

/// The policy and the log; shared by all requests.
pub struct Audit {
    policy: Policy,
    log: Arc<Log>,
}

impl Audit {
    /// `None` where a policy or a log is not asked for.
    ///
    /// # Errors
    /// When the policy cannot be read or makes no sense, or the log cannot be opened.
    pub fn start(config: &Config) -> anyhow::Result<Option<Self>> {
        let (Some(policy), Some(path)) = (&config.policy_file, &config.log_path) else { return Ok(None) };
        let text = std::fs::read_to_string(policy)
            .with_context(|| format!("cannot read the audit policy {}", policy.display()))?;
        let policy = Policy::parse(&text)
            .map_err(|why| anyhow::anyhow!("the audit policy {} cannot be used: {why}", policy.display()))?;
        let log = Log::open(path, config)
            .with_context(|| format!("cannot open the audit log {}", path.display()))?;
        Ok(Some(Self { policy, log: Arc::new(log) }))
    }

    /// What is kept of a request; `None` for nothing.
    pub fn recorder(&self, subject: &Subject<'_>) -> Option<Arc<Recorder>> {
        let decision = self.policy.decide(subject);
        (decision.level > Level::None).then(|| Arc::new(Recorder::new(decision, Arc::clone(&self.log))))
    }
}
