//! Answers of proxied pages, made right for where the client sees them: links and redirects with an absolute path get
//! the proxy's path before them, or a browser would leave the proxy with the first of them. What upstream rewrites is
//! rewritten: `Location`, and the attributes of HTML that hold a URL.
//!
//! A page is rewritten whole, up to [`PAGE_BYTES_MAX`]; a larger one and one in an encoding other than gzip and deflate
//! passes as it is.

use std::{borrow::Cow, io::Write as _};

use bytes::{Bytes, BytesMut};
use flate2::write::{GzDecoder, ZlibDecoder};
use html5gum::{
    Span, Tokenizer,
    emitters::callback::{CallbackEmitter, CallbackEvent},
};
use http::{HeaderValue, Response, header};
use http_body_util::BodyExt as _;

use crate::server::body::{self, Body, Data};

/// Bytes of the longest page that is rewritten, before and after decompression.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Elements with their attributes that hold a URL (HTML 4.01 index of attributes, HTML Living Standard).
const LINKS: [(&str, &[&str]); 26] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "formaction", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
];

/// Where the client sees a backend.
#[derive(Clone, Debug)]
pub struct Place {
    /// The path of the proxy, without a slash at the end.
    pub prefix: String,
    /// The backend's host and port.
    pub backend: String,
    /// The host that the client asked.
    pub host: String,
}

impl Place {
    /// Rewrites an answer of the backend.
    pub async fn apply(&self, mut response: Response<Body>) -> Response<Body> {
        let headers = response.headers_mut();
        // Whose pages may read the answer is for the API server to say.
        let cors: Vec<_> =
            headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
        cors.iter().for_each(|name| drop(headers.remove(name)));
        let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
        if let Some(location) = location.and_then(|link| HeaderValue::try_from(&*self.link(link)).ok()) {
            headers.insert(header::LOCATION, location);
            return response;
        }
        let is_page = headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/html");
        let encoding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
        match encoding.map(Encoding::of).unwrap_or(Some(Encoding::Identity)) {
            Some(encoding) if is_page => self.rewritten(response, encoding).await,
            _ => response,
        }
    }

    async fn rewritten(&self, response: Response<Body>, encoding: Encoding) -> Response<Body> {
        let (mut parts, mut rest) = response.into_parts();
        let mut page = BytesMut::new();
        while let Some(frame) = rest.frame().await {
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => page.extend_from_slice(&data.into_bytes()),
                Ok(Err(_trailers)) => {}
                Err(error) => {
                    // What came goes on, and then the same end.
                    let begun = futures::stream::iter([Ok(page.freeze()), Err(error)]);
                    return Response::from_parts(parts, body::stream(begun));
                }
            }
            if page.len() > PAGE_BYTES_MAX {
                let begun = futures::stream::once(async { Ok(Data::from(page.freeze())) });
                let rest = rest.into_data_stream();
                return Response::from_parts(parts, body::stream(futures::StreamExt::chain(begun, rest)));
            }
        }
        let page = page.freeze();
        let Some(plain) = encoding.decoded(&page) else {
            return Response::from_parts(parts, body::full(page));
        };
        parts.headers.remove(header::CONTENT_ENCODING);
        parts.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(parts, body::full(self.page(&plain)))
    }

    /// The page with its links rewritten, and every other byte as it was.
    fn page(&self, page: &[u8]) -> Vec<u8> {
        let mut edits: Vec<(Span<usize>, String)> = Vec::new();
        let (mut element, mut attribute): (&[&str], bool) = (&[], false);
        let emitter = CallbackEmitter::new(|event: CallbackEvent<'_>, span: Span<usize>| {
            match event {
                CallbackEvent::OpenStartTag { name } => {
                    element = LINKS.iter().find(|(tag, _)| tag.as_bytes() == name).map_or(&[], |(_, of)| of);
                }
                CallbackEvent::EndTag { .. } | CallbackEvent::CloseStartTag { .. } => element = &[],
                CallbackEvent::AttributeName { name } => {
                    attribute = element.iter().any(|link| link.as_bytes() == name);
                }
                CallbackEvent::AttributeValue { value } if attribute => {
                    let link = String::from_utf8_lossy(value);
                    if let Cow::Owned(new) = self.link(&link) {
                        edits.push((span, escaped(&new)));
                    }
                }
                _ => {}
            }
            None::<std::convert::Infallible>
        });
        let mut emitter = emitter;
        // Scripts and styles hold no elements.
        emitter.naively_switch_states(true);
        let Ok(()) = Tokenizer::new_with_emitter(page, emitter).finish();
        let mut rewritten = Vec::with_capacity(page.len() + edits.len() * self.prefix.len());
        let mut copied = 0;
        for (span, link) in edits {
            rewritten.extend_from_slice(&page[copied..span.start]);
            rewritten.extend_from_slice(link.as_bytes());
            copied = span.end;
        }
        rewritten.extend_from_slice(&page[copied..]);
        rewritten
    }

    /// A link as the client has to follow it: one with an absolute path to the backend goes through the proxy, every
    /// other is right as it is.
    fn link<'a>(&self, link: &'a str) -> Cow<'a, str> {
        let text = link.trim();
        let after_scheme = ["http://", "https://", "//"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let (is_to_host, path) = match after_scheme {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                if host != self.backend && host != self.host {
                    return link.into();
                }
                (host == self.host, path)
            }
            None => (false, text),
        };
        if !path.starts_with('/') {
            return link.into();
        }
        let end = path.find(['?', '#']).unwrap_or(path.len());
        let (pure, rest) = path.split_at(end);
        let is_below = pure
            .strip_prefix(&self.prefix)
            .is_some_and(|below| matches!(below.chars().next(), None | Some('/')));
        let path = if is_below { pure.to_owned() } else { format!("{}{}", self.prefix, normal(pure)) };
        let start = if is_to_host { &text[..text.len() - end - rest.len()] } else { "" };
        let new = format!("{start}{path}{rest}");
        if new == text { link.into() } else { new.into() }
    }
}

/// An absolute path without `.`, `..` and empty segments, so that none leads out of the proxy.
fn normal(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let end = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// As the value of an attribute, quoted or not.
fn escaped(link: &str) -> String {
    let mut text = String::with_capacity(link.len());
    for character in link.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '"' => text.push_str("&#34;"),
            '\'' => text.push_str("&#39;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            other => text.push(other),
        }
    }
    text
}

#[derive(Clone, Copy)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Encoding {
    fn of(name: &str) -> Option<Self> {
        match name {
            "" | "identity" => Some(Self::Identity),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// `None` for what is not of the encoding, or too long.
    fn decoded(self, page: &Bytes) -> Option<Bytes> {
        match self {
            Self::Identity => Some(page.clone()),
            Self::Gzip => {
                let mut decoder = GzDecoder::new(Limited::default());
                decoder.write_all(page).ok()?;
                Some(decoder.finish().ok()?.0.into())
            }
            Self::Deflate => {
                let mut decoder = ZlibDecoder::new(Limited::default());
                decoder.write_all(page).ok()?;
                Some(decoder.finish().ok()?.0.into())
            }
        }
    }
}

/// Takes no more than a page may have.
#[derive(Default)]
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > PAGE_BYTES_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/services/s/proxy".into(),
            backend: "10.244.0.3:8080".into(),
            host: "localhost:8001".into(),
        }
    }

    #[test]
    fn absolute_paths_go_through_the_proxy_and_all_else_stays() {
        let below = "/api/v1/namespaces/n/services/s/proxy";
        for (link, rewritten) in [
            ("/", format!("{below}/")),
            ("/kitten/", format!("{below}/kitten/")),
            ("/a?x=/b#c", format!("{below}/a?x=/b#c")),
            ("/a/../../../../api?x", format!("{below}/api?x")),
            ("http://10.244.0.3:8080/a", format!("{below}/a")),
            ("//10.244.0.3:8080/a", format!("{below}/a")),
            ("https://localhost:8001/a", format!("https://localhost:8001{below}/a")),
        ] {
            assert_eq!(place().link(link), rewritten, "{link}");
        }
        for link in [
            "a/b",
            "#x",
            "?x=1",
            "",
            "http://example.com/a",
            "//example.com/a",
            "http://10.244.0.3:8080",
            "mailto:a@example.com",
            "data:text/html,<a href=/x>",
            "/api/v1/namespaces/n/services/s/proxy/a",
            "/api/v1/namespaces/n/services/s/proxy",
        ] {
            assert!(matches!(place().link(link), Cow::Borrowed(same) if same == link), "{link}");
        }
    }

    #[test]
    fn a_page_keeps_every_byte_but_its_links() {
        let page = r#"<!DOCTYPE html><HTML><a title="/t" HREF='/a?b=1&amp;c=2'>/x</a><img src=/i.png alt=/j>
<script src="/s.js">var x = '<a href="/no">';</script><!-- <a href="/no"> --><p href="/no"></p href="/no"><a href>é</a>"#;
        let rewritten = String::from_utf8(place().page(page.as_bytes())).unwrap();
        let below = place().prefix;
        let wanted = page
            .replace("'/a?b", &format!("'{below}/a?b"))
            .replace("src=/i", &format!("src={below}/i"))
            .replace("\"/s.js", &format!("\"{below}/s.js"));
        assert_eq!(rewritten, wanted);
        for odd in ["<a href=\"/x", "<a href=", "<", "", "\0<a \0 href=/\u{fffd}"] {
            place().page(odd.as_bytes());
        }
    }

    #[tokio::test]
    async fn pages_are_rewritten_in_every_encoding_that_is_known() {
        let page = b"<a href=\"/x\">";
        let wanted = format!("<a href=\"{}/x\">", place().prefix);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(page).unwrap();
        let gzip = gzip.finish().unwrap();
        for (encoding, sent, received) in [
            ("identity", page.to_vec(), wanted.as_bytes()),
            ("gzip", gzip.clone(), wanted.as_bytes()),
            ("br", page.to_vec(), page.as_slice()),
            ("gzip", page.to_vec(), page.as_slice()),
        ] {
            let response = Response::builder()
                .header("content-type", "text/html; charset=utf-8")
                .header("content-encoding", encoding)
                .header("access-control-allow-origin", "*")
                .body(body::full(sent))
                .unwrap();
            let response = place().apply(response).await;
            assert!(!response.headers().contains_key("access-control-allow-origin"));
            let answer = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(answer, received, "{encoding}");
        }
    }

    #[tokio::test]
    async fn what_is_no_page_or_too_long_passes_and_a_redirect_is_followed_through_the_proxy() {
        let long = vec![b'<'; PAGE_BYTES_MAX + 1];
        for (kind, content) in [("text/plain", b"<a href=\"/x\">".to_vec()), ("text/html", long)] {
            let response =
                Response::builder().header("content-type", kind).body(body::full(content.clone())).unwrap();
            let answer = place().apply(response).await.into_body().collect().await.unwrap();
            assert!(answer.to_bytes() == content, "{kind}");
        }
        let response =
            Response::builder().status(302).header("location", "/login").body(body::empty()).unwrap();
        let response = place().apply(response).await;
        assert_eq!(response.headers()["location"], "/api/v1/namespaces/n/services/s/proxy/login");
    }
}
