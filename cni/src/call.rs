//! What the plugin asks of the agent and what that answers, and how both get over the socket.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Octets of a message without its length. GC's is the longest, with some 100 octets for each attachment.
const MESSAGE_MAX: usize = 16 << 20;
/// Octets that are read at once; all but GC's request fit.
const READ_SIZE: usize = 8 << 10;

/// An interface in a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    pub container_id: String,
    pub interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered with [`Answer::Added`] when the pod is routed, its packets are served and its address is announced.
    /// Idempotent. Comes with the pod's network namespace.
    Add(AddRequest),
    /// Succeeds for an attachment that is unknown.
    Del(Attachment),
    /// [`Reason::NotAsItShouldBe`] names what is not. Comes with the pod's network namespace.
    Check { attachment: Attachment, addresses: Vec<String> },
    /// [`Reason::Unavailable`] says why ADD would not work now.
    Status,
    /// Releases every attachment that is not listed.
    Gc { valid: Vec<Attachment> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    pub attachment: Attachment,
    /// Empty where the runtime does not say it, as are the next two.
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// 1 to 65535, as is the other.
    pub host_port: u16,
    pub container_port: u16,
    /// tcp, udp or sctp.
    pub protocol: String,
    /// Empty for every address of the node.
    pub host_ip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Added(Added),
    Done,
    Refused { reason: Reason, message: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    pub host_interface: String,
    pub host_mac: String,
    pub pod_mac: String,
    /// Octets.
    pub mtu: u32,
    pub addresses: Vec<Address>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// With its length, such as 10.244.0.66/32.
    pub address: String,
    pub gateway: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Later it may work.
    Unavailable,
    NoAddress,
    InvalidArgument,
    NotAsItShouldBe,
    Failed,
}

/// Asks the agent that listens on `socket`, and waits for its answer.
///
/// # Errors
/// Where nobody listens, at once; where no answer comes within `patience`, `WouldBlock`.
pub fn ask(socket: &Path, request: &Request, netns: Option<&File>, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let octets = message(request)?;
    let descriptors: Vec<RawFd> = netns.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(&octets)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(&octets[sent..])?;
    let mut received = vec![0; READ_SIZE];
    let length = stream.read(&mut received)?;
    received.truncate(length);
    read(&mut stream, received)
}

/// Reads a request, and the namespace that came with it. To be called on a blocking stream with a timeout.
pub fn accept(stream: &mut UnixStream) -> io::Result<(Request, Option<File>)> {
    let mut received = vec![0; READ_SIZE];
    let mut space = nix::cmsg_space!(RawFd);
    let (length, netns) = {
        let mut parts = [IoSliceMut::new(&mut received)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let descriptors = message.cmsgs()?.filter_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        // SAFETY: the kernel has just made these descriptors for this call; nothing else owns them.
        let owned = descriptors.flatten().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) });
        let netns = owned.map(File::from).last();
        (message.bytes, netns)
    };
    received.truncate(length);
    Ok((read(stream, received)?, netns))
}

/// Sends the answer to what [`accept`] read.
pub fn answer(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(&message(answer)?)
}

fn message(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut octets = vec![0; 4];
    serde_json::to_writer(&mut octets, value)?;
    let length = octets.len() - 4;
    if length > MESSAGE_MAX {
        return Err(too_long(length));
    }
    octets[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(octets)
}

/// Reads the rest of a message, of which `received` is there already.
fn read<T: DeserializeOwned>(stream: &mut UnixStream, mut received: Vec<u8>) -> io::Result<T> {
    let mut at_least = |received: &mut Vec<u8>, length: usize| {
        let start = received.len().min(length);
        received.resize(received.len().max(length), 0);
        stream.read_exact(&mut received[start..length])
    };
    let have = received.len();
    if have < 4 {
        at_least(&mut received, 4)?;
    }
    let length = u32::from_be_bytes([received[0], received[1], received[2], received[3]]) as usize;
    if length > MESSAGE_MAX {
        return Err(too_long(length));
    }
    if received.len() < 4 + length {
        at_least(&mut received, 4 + length)?;
    }
    Ok(serde_json::from_slice(&received[4..4 + length])?)
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a message of {length} octets, {MESSAGE_MAX} are possible"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachments(count: usize) -> Vec<Attachment> {
        let one = |n| Attachment { container_id: format!("{n:064}"), interface: "eth0".to_owned() };
        (0..count).map(one).collect()
    }

    #[test]
    fn a_request_arrives_whole_with_its_namespace_and_so_does_the_answer() {
        let folder = std::env::temp_dir().join(format!("seaway-cni-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("cni.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (refused, done) =
            (Answer::Refused { reason: Reason::NoAddress, message: "x".repeat(READ_SIZE * 3) }, Answer::Done);
        let serving = std::thread::spawn({
            let answers = [refused.clone(), done.clone()];
            move || {
                answers.map(|reply| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let asked = accept(&mut stream).unwrap();
                    answer(&mut stream, &reply).unwrap();
                    asked
                })
            }
        });
        let patience = Duration::from_secs(10);
        let long = Request::Gc { valid: attachments(5000) };
        assert_eq!(ask(&socket, &long, None, patience).unwrap(), refused);
        let file = File::open("/proc/self/ns/net").unwrap();
        assert_eq!(ask(&socket, &Request::Status, Some(&file), patience).unwrap(), done);
        let [(first, none), (second, netns)] = serving.join().unwrap();
        assert!(first == long && none.is_none() && second == Request::Status);
        use std::os::unix::fs::MetadataExt;
        assert_eq!(netns.unwrap().metadata().unwrap().ino(), file.metadata().unwrap().ino());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_cut_off_or_too_long_or_no_message_is_an_error() {
        let cases: [&[u8]; 6] = [
            b"",
            &[0, 0],
            &[0, 0, 0, 9, b'"'],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &[0, 0, 0, 0],
            b"\0\0\0\x04\"No\"",
        ];
        for octets in cases {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            there.write_all(octets).unwrap();
            drop(there);
            assert!(accept(&mut here).is_err(), "{octets:?}");
        }
    }
}
