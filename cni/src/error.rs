//! Errors as the CNI specification wants them on standard output.

use serde_json::{Value, json};

use crate::call::Reason;

/// Codes of the specification, section "Error".
pub const INCOMPATIBLE_VERSION: u32 = 1;
pub const INVALID_ENVIRONMENT: u32 = 4;
pub const IO_FAILURE: u32 = 5;
pub const DECODE_FAILURE: u32 = 6;
pub const INVALID_CONFIG: u32 = 7;
pub const TRY_AGAIN_LATER: u32 = 11;
pub const NOT_AVAILABLE: u32 = 50;
/// The first code left to plugins: CHECK found the attachment not as it should be.
pub const CHECK_FAILED: u32 = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub code: u32,
    pub message: String,
    pub details: String,
}

impl Error {
    pub fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> Error {
        Error { code, message: message.into(), details: details.into() }
    }

    pub fn environment(variable: &str, details: impl Into<String>) -> Error {
        Error::new(INVALID_ENVIRONMENT, format!("invalid environment variable {variable}"), details)
    }

    pub fn config(field: &str, details: impl Into<String>) -> Error {
        Error::new(INVALID_CONFIG, format!("invalid network configuration: field {field:?}"), details)
    }

    /// The agent's refusal of a call.
    pub fn from_refusal(reason: Reason, details: String) -> Error {
        let (code, message) = match reason {
            Reason::Unavailable => (TRY_AGAIN_LATER, "the agent cannot do this now"),
            Reason::NoAddress => (TRY_AGAIN_LATER, "no address is free"),
            Reason::InvalidArgument => (INVALID_ENVIRONMENT, "the agent refused an argument"),
            Reason::NotAsItShouldBe => (CHECK_FAILED, "the attachment is not as it should be"),
            Reason::Failed => (IO_FAILURE, "the agent failed"),
        };
        Error::new(code, message, details)
    }

    pub fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        })
    }
}
