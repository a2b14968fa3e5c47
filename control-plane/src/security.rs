//! The flags of authentication and of the server's limits, under upstream's names.

use std::{path::PathBuf, time::Duration};

use apiserver::{audit, config::Security, security::authentication::Anonymous};
use clap::Args;

/// As upstream.
const GOAWAY_CHANCE_MAX: f64 = 0.02;

#[derive(Debug, Args)]
pub struct SecurityArguments {
    /// Let requests without credentials in, as system:anonymous.
    #[arg(long, global = true, env = "SEAWAY_ANONYMOUS_AUTH", default_value_t = true, action = clap::ArgAction::Set)]
    pub anonymous_auth: bool,
    /// Let them in on this path only, such as /livez; may be given more than once.
    #[arg(long, global = true, env = "SEAWAY_ANONYMOUS_AUTH_PATH", value_delimiter = ',')]
    pub anonymous_auth_path: Vec<String>,
    /// A CSV file of tokens: token,user,uid,"group1,group2".
    #[arg(long, global = true, env = "SEAWAY_TOKEN_AUTH_FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// Let nodes join with Secrets of type bootstrap.kubernetes.io/token.
    #[arg(long, global = true, env = "SEAWAY_ENABLE_BOOTSTRAP_TOKEN_AUTH")]
    pub enable_bootstrap_token_auth: bool,
    /// A PEM file of keys that verify ServiceAccount tokens too, such as the key before this one; may be given more than
    /// once.
    #[arg(long, global = true, env = "SEAWAY_SERVICE_ACCOUNT_KEY_FILE", value_delimiter = ',')]
    pub service_account_key_file: Vec<PathBuf>,
    /// Whom ServiceAccount tokens are from, an https:// URL; the first for new ones. May be given more than once.
    #[arg(long, global = true, env = "SEAWAY_SERVICE_ACCOUNT_ISSUER", value_delimiter = ',')]
    pub service_account_issuer: Vec<String>,
    /// Whom tokens for this server are for; by default its issuers.
    #[arg(long, global = true, env = "SEAWAY_API_AUDIENCES", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// A PEM file of more CAs that client certificates may be of; read again when it changes.
    #[arg(long, global = true, env = "SEAWAY_CLIENT_CA_FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Read-only requests that are served at a time; 0 is no limit.
    #[arg(long, global = true, env = "SEAWAY_MAX_REQUESTS_INFLIGHT", default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Mutating requests that are served at a time; 0 is no limit.
    #[arg(long, global = true, env = "SEAWAY_MAX_MUTATING_REQUESTS_INFLIGHT", default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    /// Share the sum of these two out by FlowSchemas and PriorityLevelConfigurations.
    #[arg(long, global = true, env = "SEAWAY_ENABLE_PRIORITY_AND_FAIRNESS", default_value_t = true, action = clap::ArgAction::Set)]
    pub enable_priority_and_fairness: bool,
    /// Seconds that a request may take that is neither a watch nor a stream.
    #[arg(long, global = true, env = "SEAWAY_REQUEST_TIMEOUT", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub request_timeout: u64,
    /// Seconds between the signal to stop and the end of accepting connections.
    #[arg(long, global = true, env = "SEAWAY_SHUTDOWN_DELAY_DURATION", default_value_t = 0)]
    pub shutdown_delay_duration: u64,
    /// Directives of the header Strict-Transport-Security, such as max-age=31536000; may be given more than once.
    #[arg(long, global = true, env = "SEAWAY_STRICT_TRANSPORT_SECURITY_DIRECTIVES", value_delimiter = ',')]
    pub strict_transport_security_directives: Vec<String>,
    /// The part of the HTTP/2 requests, 0 to 0.02, after which their connection takes no more: behind a load balancer, its
    /// client may come back to another server. With one server leave it at 0.
    #[arg(long, global = true, env = "SEAWAY_GOAWAY_CHANCE", default_value_t = 0.0)]
    pub goaway_chance: f64,
    #[command(flatten)]
    pub audit: AuditArguments,
}

/// The audit log, off without a policy and a path.
#[derive(Debug, Args)]
pub struct AuditArguments {
    /// The audit.k8s.io/v1 Policy that says what is logged.
    #[arg(long, global = true, env = "SEAWAY_AUDIT_POLICY_FILE", requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// The file for audit events, as JSON lines; - is standard output.
    #[arg(long, global = true, env = "SEAWAY_AUDIT_LOG_PATH")]
    pub audit_log_path: Option<PathBuf>,
    /// Days that rotated audit logs are kept; 0 is forever.
    #[arg(long, global = true, env = "SEAWAY_AUDIT_LOG_MAXAGE", default_value_t = 0)]
    pub audit_log_maxage: u32,
    /// Rotated audit logs that are kept; 0 is all.
    #[arg(long, global = true, env = "SEAWAY_AUDIT_LOG_MAXBACKUP", default_value_t = 0)]
    pub audit_log_maxbackup: u32,
    /// Megabytes of an audit log before it is rotated; 0 is 100.
    #[arg(long, global = true, env = "SEAWAY_AUDIT_LOG_MAXSIZE", default_value_t = 0)]
    pub audit_log_maxsize: u32,
}

impl AuditArguments {
    fn config(&self) -> audit::Config {
        audit::Config {
            policy_file: self.audit_policy_file.clone(),
            log_path: self.audit_log_path.clone(),
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            max_size: self.audit_log_maxsize,
        }
    }
}

impl SecurityArguments {
    /// # Errors
    /// When a value makes no sense.
    pub fn config(&self) -> anyhow::Result<Security> {
        for issuer in &self.service_account_issuer {
            if !issuer.starts_with("https://") || issuer.contains(['?', '#']) {
                anyhow::bail!(
                    "--service-account-issuer {issuer:?} is not an https:// URL without query and fragment"
                );
            }
        }
        if !(0.0..=GOAWAY_CHANCE_MAX).contains(&self.goaway_chance) {
            anyhow::bail!("--goaway-chance can not be less than 0 or greater than {GOAWAY_CHANCE_MAX}");
        }
        let anonymous = match (self.anonymous_auth, self.anonymous_auth_path.as_slice()) {
            (false, _) => Anonymous::Nowhere,
            (true, []) => Anonymous::Everywhere,
            (true, paths) => Anonymous::Paths(paths.to_vec()),
        };
        Ok(Security {
            anonymous,
            token_auth_file: self.token_auth_file.clone(),
            bootstrap_tokens: self.enable_bootstrap_token_auth,
            service_account_key_files: self.service_account_key_file.clone(),
            service_account_issuers: self.service_account_issuer.clone(),
            api_audiences: self.api_audiences.clone(),
            client_ca_file: self.client_ca_file.clone(),
            max_requests_inflight: self.max_requests_inflight,
            max_mutating_requests_inflight: self.max_mutating_requests_inflight,
            priority_and_fairness: self.enable_priority_and_fairness,
            request_timeout: Duration::from_secs(self.request_timeout),
            shutdown_delay: Duration::from_secs(self.shutdown_delay_duration),
            strict_transport_security: self.strict_transport_security_directives.clone(),
            goaway_chance: self.goaway_chance,
            audit: self.audit.config(),
        })
    }
}
