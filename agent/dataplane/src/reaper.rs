//! Deletes links of pods behind their caller's back.
//!
//! A link takes the kernel an RCU grace period or two, some 30 ms under the lock of all links, and many together take no
//! longer than one. So who deletes a pod does not wait for it, and what piles up meanwhile goes at once, as a group.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::links::Links;

/// A host end to be deleted.
#[derive(Debug)]
struct Doomed {
    index: u32,
    name: String,
}

#[derive(Debug)]
pub struct Reaper {
    doomed: Sender<Doomed>,
}

impl Reaper {
    /// Works in the calling thread's network namespace, on a thread of its own that ends with the reaper. `after` is called
    /// with the index of each link once it is gone.
    pub fn start(after: impl Fn(u32) + Send + 'static) -> io::Result<Reaper> {
        let links = Links::open()?;
        let (doomed, received) = channel();
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || run(links, &received, &after))?;
        Ok(Reaper { doomed })
    }

    /// Returns at once; the link goes soon. One that has another name by then, as its index was given to it anew, stays.
    pub fn remove(&self, index: u32, name: String) {
        // The thread ends after the sender.
        let _ = self.doomed.send(Doomed { index, name });
    }
}

fn run(mut links: Links, received: &Receiver<Doomed>, after: &impl Fn(u32)) {
    while let Ok(first) = received.recv() {
        let all: Vec<Doomed> = std::iter::once(first).chain(received.try_iter()).collect();
        let named: Vec<(u32, &str)> = all.iter().map(|link| (link.index, link.name.as_str())).collect();
        if let Err(error) = links.remove_all(&named) {
            tracing::warn!(links = named.len(), %error, "deleting links of pods that are gone");
        }
        all.iter().for_each(|link| after(link.index));
    }
}
