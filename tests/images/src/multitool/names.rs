//! A stub resolver on the pod's own resolv.conf: search list, ndots, UDP with a retry, TCP where asked for.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const TRIES: u32 = 2;
const WAIT: Duration = Duration::from_secs(2);

struct Resolver {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Resolver {
    fn from_system() -> Result<Self> {
        let text = std::fs::read_to_string("/etc/resolv.conf").context("reading /etc/resolv.conf")?;
        let mut resolver = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["nameserver", address, ..] => {
                    let address: IpAddr = address.parse().with_context(|| format!("nameserver {address}"))?;
                    resolver.servers.push(SocketAddr::new(address, 53));
                }
                ["search", names @ ..] => {
                    resolver.search = names.iter().map(|name| (*name).to_owned()).collect()
                }
                ["options", options @ ..] => {
                    let ndots = options.iter().find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
                    resolver.ndots = ndots.unwrap_or(1);
                }
                _ => {}
            }
        }
        Ok(resolver)
    }

    fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{}.", domain.trim_end_matches('.')));
        let absolute = format!("{name}.");
        if name.matches('.').count() >= self.ndots {
            std::iter::once(absolute).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(absolute)).collect()
        }
    }

    async fn records(&self, name: &str, kind: RecordType, tcp: bool) -> Result<Vec<Record>> {
        let mut last = ResponseCode::NXDomain;
        for candidate in self.candidates(name) {
            let answer = self.exchange(&candidate, kind, tcp).await?;
            let answers = answer.answers.clone();
            if !answers.is_empty() {
                return Ok(answers);
            }
            last = answer.metadata.response_code;
        }
        bail!("{name} {kind}: {last}")
    }

    async fn exchange(&self, name: &str, kind: RecordType, tcp: bool) -> Result<Message> {
        let mut message = Message::new(rand_id(), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message
            .add_query(Query::query(Name::from_ascii(name).with_context(|| format!("name {name}"))?, kind));
        let bytes = message.to_vec().context("encoding the query")?;
        for _ in 0..TRIES {
            for server in &self.servers {
                let answer =
                    if tcp { over_tcp(*server, &bytes).await } else { over_udp(*server, &bytes).await };
                if let Ok(answer) = answer {
                    return Message::from_vec(&answer).context("decoding the answer");
                }
            }
        }
        bail!("no answer about {name} from {:?}", self.servers)
    }
}

fn rand_id() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    (std::collections::hash_map::RandomState::new().build_hasher().finish() & 0xffff) as u16
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let local: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(local).await.context("binding")?;
    socket.connect(server).await.context("connecting")?;
    socket.send(query).await.context("sending")?;
    let mut buffer = vec![0; 64 * 1024];
    let length = timeout(WAIT, socket.recv(&mut buffer)).await.context("no answer")??;
    buffer.truncate(length);
    Ok(buffer)
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await.context("connecting")?;
        stream.write_u16(u16::try_from(query.len())?).await.context("sending")?;
        stream.write_all(query).await.context("sending")?;
        let length = stream.read_u16().await.context("receiving")?;
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await.context("receiving")?;
        Ok(buffer)
    };
    timeout(WAIT, exchange).await.context("no answer")?
}

/// As getaddrinfo does: the first candidate that has an address of either family.
pub(crate) async fn addresses(name: &str) -> Result<Vec<IpAddr>> {
    let resolver = Resolver::from_system()?;
    let mut last = ResponseCode::NXDomain;
    for candidate in resolver.candidates(name) {
        let mut found = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = resolver.exchange(&candidate, kind, false).await?;
            last = answer.metadata.response_code;
            found.extend(answer.answers.into_iter().filter_map(|record| match record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            }));
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    bail!("{name}: {last}")
}

pub(crate) async fn print(name: &str, kind: &str, tcp: bool) -> Result<()> {
    let kind: RecordType =
        kind.to_uppercase().parse().map_err(|_| anyhow::anyhow!("{kind} is no record type"))?;
    for record in Resolver::from_system()?.records(name, kind, tcp).await? {
        println!("{record}");
    }
    Ok(())
}
