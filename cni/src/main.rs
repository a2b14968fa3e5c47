//! The CNI plugin `seaway-cni`: checks its input, asks the agent, prints the result.
//!
//! Specification 1.1.0 and older (containernetworking/cni, SPEC.md): ADD, DEL, CHECK, STATUS, GC, VERSION. An
//! error is printed on standard output as JSON with its code, and the exit status is 1.

mod result;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use cni::v1::{AddRequest, Attachment, CheckRequest, DelRequest, GcRequest, StatusRequest};
use serde_json::Value;

use cni::config::{self, Environment, NetworkConfig};
use cni::error::{self, Error, INVALID_CONFIG, NOT_AVAILABLE, TRY_AGAIN_LATER};

/// The runtime's own limit is longer; an answer with a reason is better than being killed.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut input = Vec::new();
    if let Err(failure) = std::io::stdin().read_to_end(&mut input) {
        let error = Error::new(error::IO_FAILURE, "reading standard input", failure.to_string());
        return print(&error.to_json(&config::version_hint(b"")), ExitCode::FAILURE);
    }
    let variable = |name: &str| std::env::var(name).ok();
    match run(&input, &Environment { variable: &variable }) {
        Ok(Some(result)) => print(&result, ExitCode::SUCCESS),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => print(&error.to_json(&config::version_hint(&input)), ExitCode::FAILURE),
    }
}

fn print(value: &Value, code: ExitCode) -> ExitCode {
    match writeln!(std::io::stdout(), "{value}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|failure| Error::new(error::IO_FAILURE, "starting the runtime", failure.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(CALL_TIMEOUT, call(&command, &config, environment)).await {
            Ok(result) => result,
            Err(_) => {
                let message =
                    format!("the agent did not answer {command} within {} s", CALL_TIMEOUT.as_secs());
                Err(Error::new(TRY_AGAIN_LATER, message, ""))
            }
        }
    })
}

async fn call(
    command: &str,
    config: &NetworkConfig,
    environment: &Environment<'_>,
) -> Result<Option<Value>, Error> {
    match command {
        "ADD" => add(config, environment).await.map(Some),
        "DEL" => {
            let request = DelRequest { attachment: Some(attachment(environment)?) };
            agent(config).await?.del(request).await.map_err(|status| Error::from_status(&status))?;
            Ok(None)
        }
        "CHECK" => {
            let addresses = config.previous_addresses.clone().ok_or_else(|| {
                Error::new(
                    INVALID_CONFIG,
                    "invalid network configuration: field \"prevResult\"",
                    "is required by CHECK",
                )
            })?;
            let (_file, netns) = open_netns(&environment.netns()?)?;
            let request = CheckRequest { attachment: Some(attachment(environment)?), netns, addresses };
            agent(config).await?.check(request).await.map_err(|status| Error::from_status(&status))?;
            Ok(None)
        }
        "STATUS" => {
            let not_available =
                |details: String| Error::new(NOT_AVAILABLE, "the agent is not ready", details);
            let mut agent = agent(config).await.map_err(|error| not_available(error.details))?;
            agent
                .status(StatusRequest {})
                .await
                .map_err(|status| not_available(status.message().to_owned()))?;
            Ok(None)
        }
        _ => {
            let valid = config
                .valid_attachments
                .clone()
                .ok_or_else(|| Error::config("cni.dev/valid-attachments", "is required by GC"))?;
            let valid = valid
                .into_iter()
                .map(|(container_id, interface)| Attachment { container_id, interface })
                .collect();
            agent(config)
                .await?
                .gc(GcRequest { valid })
                .await
                .map_err(|status| Error::from_status(&status))?;
            Ok(None)
        }
    }
}

async fn add(config: &NetworkConfig, environment: &Environment<'_>) -> Result<Value, Error> {
    let attachment = attachment(environment)?;
    let path = environment.netns()?;
    let (_file, netns) = open_netns(&path)?;
    let (pod_namespace, pod_name, pod_uid) = environment.pod();
    let interface = attachment.interface.clone();
    let port_mappings = config.port_mappings()?;
    let request =
        AddRequest { attachment: Some(attachment), netns, pod_namespace, pod_name, port_mappings, pod_uid };
    let response = agent(config).await?.add(request).await.map_err(|status| Error::from_status(&status))?;
    Ok(result::added(&config.version, &interface, &path, &response.into_inner()))
}

fn attachment(environment: &Environment<'_>) -> Result<Attachment, Error> {
    Ok(Attachment { container_id: environment.container_id()?, interface: environment.interface()? })
}

/// Opens the namespace here, where the runtime's mounts are seen, and names it so that the agent can open it too.
fn open_netns(path: &str) -> Result<(File, String), Error> {
    let file = File::open(path)
        .map_err(|failure| Error::environment("CNI_NETNS", format!("opening {path}: {failure}")))?;
    let name = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((file, name))
}

async fn agent(
    config: &NetworkConfig,
) -> Result<cni::v1::cni_client::CniClient<tonic::transport::Channel>, Error> {
    cni::connect(&config.socket).await.map_err(|failure| {
        let mut details = format!("connecting to {}: {failure}", config.socket.display());
        let mut source = std::error::Error::source(&failure);
        while let Some(cause) = source {
            details.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Error::new(TRY_AGAIN_LATER, "the agent cannot be reached", details)
    })
}

#[cfg(test)]
mod tests;
