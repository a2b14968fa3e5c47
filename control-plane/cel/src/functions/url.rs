//! `url` and its parts, read as Go's net/url reads requests.

use std::sync::Arc;

use super::{Entry, no_overload};
use crate::{
    error::EvalError,
    value::{Map, OwnedMap, Val},
};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

/// An absolute URL or an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

pub(super) const TABLE: &[Entry] = &[
    ("url", to_url, &[("string_to_url", "(string) -> url")]),
    ("isURL", is_url, &[("is_url_string", "(string) -> bool")]),
    ("getScheme", part, &[("url_get_scheme", "url.() -> string")]),
    ("getHost", part, &[("url_get_host", "url.() -> string")]),
    ("getHostname", part, &[("url_get_hostname", "url.() -> string")]),
    ("getPort", part, &[("url_get_port", "url.() -> string")]),
    ("getEscapedPath", part, &[("url_get_escaped_path", "url.() -> string")]),
    ("getQuery", query, &[("url_get_query", "url.() -> map(string, list(string))")]),
];

impl Url {
    /// # Errors
    /// What Go says of the text.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let wrong = |why: &str| format!("parse {text:?}: {why}");
        if text.is_empty() {
            return Err(wrong("empty url"));
        }
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err(wrong("net/url: invalid control character in URL"));
        }
        let (scheme, rest) = scheme(text).ok_or_else(|| wrong("missing protocol scheme"))?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !rest.starts_with('/') {
            let why = if scheme.is_empty() { "invalid URI for request" } else { "" };
            if scheme.is_empty() {
                return Err(wrong(why));
            }
            return Ok(Self::new(text, scheme, "", "", query));
        }
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() || !rest.starts_with('/') => {
                let end = rest.find('/').unwrap_or(rest.len());
                let authority = &rest[..end];
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                check_host(host).map_err(|why| wrong(&why))?;
                (host, &rest[end..])
            }
            _ => ("", rest),
        };
        check_escapes(path).map_err(|why| wrong(&why))?;
        Ok(Self::new(text, scheme, host, path, query))
    }

    fn new(text: &str, scheme: &str, host: &str, path: &str, query: &str) -> Self {
        Self {
            text: text.to_owned(),
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            path: escaped_path(path),
            query: query.to_owned(),
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn split_host(&self) -> (&str, &str) {
        let port_at = match self.host.rfind(']') {
            Some(bracket) => self.host[bracket..].find(':').map(|colon| bracket + colon),
            None => self.host.find(':'),
        };
        let (host, port) = port_at.map_or((&*self.host, ""), |at| (&self.host[..at], &self.host[at + 1..]));
        (host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host), port)
    }
}

/// The scheme, perhaps empty, and the rest; `None` where the text begins with a colon.
fn scheme(text: &str) -> Option<(&str, &str)> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index > 0 => return Some((&text[..index], &text[index + 1..])),
            b':' => return None,
            _ => return Some(("", text)),
        }
    }
    Some(("", text))
}

fn check_host(host: &str) -> std::result::Result<(), String> {
    let port = if host.starts_with('[') {
        let Some(end) = host.rfind(']') else { return Err("missing ']' in host".to_owned()) };
        let address = host[1..end].split('%').next().unwrap_or_default();
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("invalid host: {host:?}"));
        }
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !port.is_empty() && (!port.starts_with(':') || !digits.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(format!("invalid port {port:?} after host"));
    }
    if let Some(wrong) = host
        .chars()
        .find(|letter| matches!(letter, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}'))
    {
        return Err(format!("invalid character {wrong:?} in host name"));
    }
    check_escapes(host)
}

fn check_escapes(text: &str) -> std::result::Result<(), String> {
    let bytes = text.as_bytes();
    for at in (0..bytes.len()).filter(|at| bytes[*at] == b'%') {
        let escape = bytes.get(at..at + 3).unwrap_or(&bytes[at..]);
        if escape.len() < 3 || !escape[1..].iter().all(u8::is_ascii_hexdigit) {
            return Err(format!("invalid URL escape {:?}", String::from_utf8_lossy(escape)));
        }
    }
    Ok(())
}

fn escaped_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte);
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    check_escapes(text).ok()?;
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                digit(bytes.next()?) << 4 | digit(bytes.next()?)
            }
            other => other,
        });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

fn to_url<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    match Url::parse(text) {
        Ok(url) => Ok(Val::Url(Arc::new(url))),
        Err(error) => Err(EvalError::new(format!("URL parse error during conversion from string: {error}"))),
    }
}

fn is_url<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(Val::Bool(Url::parse(text).is_ok()))
}

fn part<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Url(url)] = args else { return no_overload() };
    Ok(Val::text(match name {
        "getScheme" => &*url.scheme,
        "getHost" => &url.host,
        "getHostname" => url.split_host().0,
        "getPort" => url.split_host().1,
        _ => &url.path,
    }))
}

fn query<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::Url(url)] = args else { return no_overload() };
    let mut values: Vec<(String, Vec<Val<'a>>)> = Vec::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(key), Some(value)) = (unescape(key), unescape(value)) else { continue };
        match values.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => known.push(Val::text(value)),
            None => values.push((key, vec![Val::text(value)])),
        }
    }
    let mut map = OwnedMap::default();
    for (key, values) in values {
        map.insert(Val::text(key), Val::list(values))?;
    }
    Ok(Val::Map(Map::Owned(Arc::new(map))))
}
