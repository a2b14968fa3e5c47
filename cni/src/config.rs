//! The plugin's input: the network configuration on standard input and the environment.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::call::PortMapping;
use crate::error::{DECODE_FAILURE, Error, INCOMPATIBLE_VERSION};

/// Versions of the specification that results are shaped for, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    pub version: String,
    pub socket: PathBuf,
    /// Addresses with lengths of `prevResult`, where there is one.
    pub previous_addresses: Option<Vec<String>>,
    runtime_config: Option<Value>,
    /// Container id and interface of `cni.dev/valid-attachments`, where it is present.
    pub valid_attachments: Option<Vec<(String, String)>>,
}

/// The version in a configuration, for error answers: whatever is there, else the newest.
pub fn version_hint(input: &[u8]) -> String {
    serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|value| value.get("cniVersion")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned())
}

impl NetworkConfig {
    pub fn parse(input: &[u8]) -> Result<NetworkConfig, Error> {
        let value: Value = serde_json::from_slice(input).map_err(|error| {
            Error::new(
                DECODE_FAILURE,
                "the network configuration on standard input is not JSON",
                error.to_string(),
            )
        })?;
        let Value::Object(fields) = value else {
            let details = "the network configuration on standard input is not a JSON object";
            return Err(Error::new(DECODE_FAILURE, details, ""));
        };
        let version =
            string(&fields, "cniVersion")?.ok_or_else(|| Error::config("cniVersion", "is missing"))?;
        if !VERSIONS.contains(&version.as_str()) {
            let details = format!("cniVersion is {version:?}, supported are {}", VERSIONS.join(", "));
            return Err(Error::new(INCOMPATIBLE_VERSION, "incompatible CNI version", details));
        }
        let name = string(&fields, "name")?.ok_or_else(|| Error::config("name", "is missing"))?;
        if !is_identifier(&name) {
            let details =
                format!("{name:?} must start with a letter or digit, and go on with these, '_', '.' or '-'");
            return Err(Error::config("name", details));
        }
        let kind = string(&fields, "type")?.ok_or_else(|| Error::config("type", "is missing"))?;
        if kind != crate::PLUGIN_TYPE {
            return Err(Error::config(
                "type",
                format!("is {kind:?}, this plugin is {:?}", crate::PLUGIN_TYPE),
            ));
        }
        let socket =
            PathBuf::from(string(&fields, "socket")?.unwrap_or_else(|| crate::DEFAULT_SOCKET.to_owned()));
        if !socket.is_absolute() {
            return Err(Error::config("socket", format!("{} is not an absolute path", socket.display())));
        }
        Ok(NetworkConfig {
            version,
            socket,
            previous_addresses: previous_addresses(&fields)?,
            runtime_config: fields.get("runtimeConfig").cloned(),
            valid_attachments: valid_attachments(&fields)?,
        })
    }
}

impl NetworkConfig {
    /// `runtimeConfig.portMappings` (containernetworking/cni, CONVENTIONS.md). Runtimes write its names in any case, as
    /// whoever reads JSON with Go does not mind.
    pub fn port_mappings(&self) -> Result<Vec<PortMapping>, Error> {
        const NAME: &str = "runtimeConfig.portMappings";
        let list = match self.runtime_config.as_ref().and_then(|config| field(config, "portMappings")) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(Error::config(NAME, format!("is {}, not a list", kind_of(other)))),
        };
        let named = |(index, entry)| port_mapping(entry, &format!("{NAME}[{index}]"));
        list.iter().enumerate().map(named).collect()
    }
}

fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn port_mapping(entry: &Value, at: &str) -> Result<PortMapping, Error> {
    let wrong = |key: &str, details: &str| Error::config(&format!("{at}.{key}"), details);
    let port = |key: &str| {
        let number = field(entry, key).and_then(Value::as_u64).filter(|number| *number != 0);
        number
            .and_then(|number| u16::try_from(number).ok())
            .ok_or_else(|| wrong(key, "is not a number from 1 to 65535"))
    };
    let text = |key: &str| field(entry, key).and_then(Value::as_str).unwrap_or_default();
    let protocol = text("protocol").to_ascii_lowercase();
    if !matches!(protocol.as_str(), "" | "tcp" | "udp" | "sctp") {
        return Err(wrong("protocol", &format!("{protocol:?} is none of tcp, udp, sctp")));
    }
    let host_ip = text("hostIP").to_owned();
    if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
        return Err(wrong("hostIP", &format!("{host_ip:?} is not an IP address")));
    }
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol };
    Ok(PortMapping {
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
        protocol,
        host_ip,
    })
}

fn string(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Error> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(Error::config(name, format!("is {}, not a string", kind_of(other)))),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn previous_addresses(fields: &Map<String, Value>) -> Result<Option<Vec<String>>, Error> {
    let Some(previous) = fields.get("prevResult").filter(|value| !value.is_null()) else { return Ok(None) };
    let ips = match previous.get("ips") {
        None => return Ok(Some(Vec::new())),
        Some(Value::Array(ips)) => ips,
        Some(other) => {
            return Err(Error::config("prevResult.ips", format!("is {}, not a list", kind_of(other))));
        }
    };
    ips.iter()
        .enumerate()
        .map(|(index, ip)| {
            let address = ip.get("address").and_then(Value::as_str);
            address
                .map(str::to_owned)
                .ok_or_else(|| Error::config(&format!("prevResult.ips[{index}].address"), "is not a string"))
        })
        .collect::<Result<Vec<String>, Error>>()
        .map(Some)
}

fn valid_attachments(fields: &Map<String, Value>) -> Result<Option<Vec<(String, String)>>, Error> {
    const NAME: &str = "cni.dev/valid-attachments";
    let list = match fields.get(NAME) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(Error::config(NAME, format!("is {}, not a list", kind_of(other)))),
    };
    let field = |entry: &Value, index: usize, key: &str| {
        let text = entry.get(key).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| Error::config(&format!("{NAME}[{index}].{key}"), "is not a string"))
    };
    list.iter()
        .enumerate()
        .map(|(index, entry)| Ok((field(entry, index, "containerID")?, field(entry, index, "ifname")?)))
        .collect::<Result<Vec<_>, Error>>()
        .map(Some)
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The variables of the specification; each is checked where it is asked for.
pub struct Environment<'a> {
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Environment<'_> {
    fn required(&self, name: &str) -> Result<String, Error> {
        (self.variable)(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::environment(name, "is required and not set"))
    }

    pub fn command(&self) -> Result<String, Error> {
        self.required("CNI_COMMAND")
    }

    pub fn container_id(&self) -> Result<String, Error> {
        let id = self.required("CNI_CONTAINERID")?;
        if is_identifier(&id) {
            return Ok(id);
        }
        let details =
            format!("{id:?} must start with a letter or digit, and go on with these, '_', '.' or '-'");
        Err(Error::environment("CNI_CONTAINERID", details))
    }

    pub fn interface(&self) -> Result<String, Error> {
        let name = self.required("CNI_IFNAME")?;
        let reserved = matches!(name.as_str(), "." | "..");
        if name.len() > 15 || reserved || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            let details =
                format!("{name:?} is not an interface name: at most 15 octets, no '/', ':' or space");
            return Err(Error::environment("CNI_IFNAME", details));
        }
        Ok(name)
    }

    pub fn netns(&self) -> Result<String, Error> {
        self.required("CNI_NETNS")
    }

    /// Namespace, name and uid of the pod from CNI_ARGS; empty where the caller is not a kubelet.
    pub fn pod(&self) -> (String, String, String) {
        let arguments = (self.variable)("CNI_ARGS").unwrap_or_default();
        let find = |key: &str| {
            let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(name, _)| *name == key)
                .map(|(_, value)| value.to_owned())
                .next()
                .unwrap_or_default()
        };
        (find("K8S_POD_NAMESPACE"), find("K8S_POD_NAME"), find("K8S_POD_UID"))
    }
}
