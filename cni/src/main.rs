//! The CNI plugin `seaway-cni`: checks its input, asks the agent, prints the result.
//!
//! Specification 1.1.0 and older (containernetworking/cni, SPEC.md): ADD, DEL, CHECK, STATUS, GC, VERSION. An
//! error is printed on standard output as JSON with its code, and the exit status is 1.

// Without what std does before `main`: it is a tenth of the time that this program has of its own.
#![cfg_attr(not(test), no_main)]

mod result;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use cni::call::{self, AddRequest, Added, Answer, Attachment, Request};
use serde_json::Value;

use cni::config::{self, Environment, NetworkConfig};
use cni::error::{self, Error, INVALID_CONFIG, NOT_AVAILABLE, TRY_AGAIN_LATER};

/// The runtime's own limit is longer; an answer with a reason is better than being killed.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The exit status.
// SAFETY: nothing else in this program has that name.
#[cfg_attr(not(test), unsafe(export_name = "main"))]
#[cfg_attr(test, expect(dead_code, reason = "tests have a `main` of their own"))]
extern "C" fn main_without_std() -> i32 {
    let mut input = Vec::new();
    if let Err(failure) = std::io::stdin().read_to_end(&mut input) {
        let error = Error::new(error::IO_FAILURE, "reading standard input", failure.to_string());
        print(&error.to_json(&config::version_hint(b"")));
        return 1;
    }
    let variable = |name: &str| std::env::var(name).ok();
    match run(&input, &Environment { variable: &variable }) {
        Ok(None) => 0,
        Ok(Some(result)) => i32::from(!print(&result)),
        Err(error) => {
            print(&error.to_json(&config::version_hint(&input)));
            1
        }
    }
}

/// Whether that was possible.
fn print(value: &Value) -> bool {
    let mut output = std::io::stdout();
    writeln!(output, "{value}").and_then(|()| output.flush()).is_ok()
}

fn run(input: &[u8], environment: &Environment<'_>) -> Result<Option<Value>, Error> {
    let command = environment.command()?;
    if command == "VERSION" {
        return Ok(Some(result::versions(&config::version_hint(input))));
    }
    if !matches!(command.as_str(), "ADD" | "DEL" | "CHECK" | "STATUS" | "GC") {
        let details = format!("{command:?} is none of ADD, DEL, CHECK, STATUS, GC, VERSION");
        return Err(Error::environment("CNI_COMMAND", details));
    }
    let config = NetworkConfig::parse(input)?;
    match command.as_str() {
        "ADD" => add(&config, environment).map(Some),
        "DEL" => ask(&config, &Request::Del(attachment(environment)?), None).map(|_| None),
        "CHECK" => {
            let addresses = config.previous_addresses.clone().ok_or_else(|| {
                Error::new(
                    INVALID_CONFIG,
                    "invalid network configuration: field \"prevResult\"",
                    "is required by CHECK",
                )
            })?;
            let netns = open_netns(&environment.netns()?)?;
            let request = Request::Check { attachment: attachment(environment)?, addresses };
            ask(&config, &request, Some(&netns)).map(|_| None)
        }
        "STATUS" => match ask(&config, &Request::Status, None) {
            Ok(_) => Ok(None),
            Err(error) => Err(Error::new(NOT_AVAILABLE, "the agent is not ready", error.details)),
        },
        _ => {
            let valid = config.valid_attachments.clone();
            let valid =
                valid.ok_or_else(|| Error::config("cni.dev/valid-attachments", "is required by GC"))?;
            let attachment = |(container_id, interface)| Attachment { container_id, interface };
            let valid = valid.into_iter().map(attachment).collect();
            ask(&config, &Request::Gc { valid }, None).map(|_| None)
        }
    }
}

fn add(config: &NetworkConfig, environment: &Environment<'_>) -> Result<Value, Error> {
    let attachment = attachment(environment)?;
    let path = environment.netns()?;
    let netns = open_netns(&path)?;
    let (pod_namespace, pod_name, pod_uid) = environment.pod();
    let interface = attachment.interface.clone();
    let port_mappings = config.port_mappings()?;
    let request = AddRequest { attachment, pod_namespace, pod_name, pod_uid, port_mappings };
    let added = ask(config, &Request::Add(request), Some(&netns))?;
    let added = added.ok_or_else(|| Error::new(error::IO_FAILURE, "the agent answered no addresses", ""))?;
    Ok(result::added(&config.version, &interface, &path, &added))
}

fn attachment(environment: &Environment<'_>) -> Result<Attachment, Error> {
    Ok(Attachment { container_id: environment.container_id()?, interface: environment.interface()? })
}

/// Opens the namespace here, where the runtime's mounts are seen.
fn open_netns(path: &str) -> Result<File, Error> {
    File::open(path).map_err(|failure| Error::environment("CNI_NETNS", format!("opening {path}: {failure}")))
}

/// The agent's answer: what it added, where that was asked for.
fn ask(config: &NetworkConfig, request: &Request, netns: Option<&File>) -> Result<Option<Added>, Error> {
    match call::ask(&config.socket, request, netns, CALL_TIMEOUT) {
        Ok(Answer::Added(added)) => Ok(Some(added)),
        Ok(Answer::Done) => Ok(None),
        Ok(Answer::Refused { reason, message }) => Err(Error::from_refusal(reason, message)),
        Err(failure) if failure.kind() == ErrorKind::WouldBlock => {
            let message = format!("the agent did not answer within {} s", CALL_TIMEOUT.as_secs());
            Err(Error::new(TRY_AGAIN_LATER, message, config.socket.display().to_string()))
        }
        Err(failure) => {
            let details = format!("asking at {}: {failure}", config.socket.display());
            Err(Error::new(TRY_AGAIN_LATER, "the agent cannot be reached", details))
        }
    }
}

#[cfg(test)]
mod tests;
