//! A block as the store has it: whose it is, and which of its addresses are at other nodes.
//!
//! ```text
//!            claim              confirm              give back
//! (absent) ────────► pending ────────► confirmed ◄────────────► pendingDeletion ────► (absent)
//! ```
//!
//! Every write carries the version that it was decided from, and raises the sequence number by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed; to everybody else as good as absent, to other claimants taken.
    Pending,
    Confirmed,
    /// About to be deleted. Its owner may confirm it again, nobody may take an address of it.
    PendingDeletion,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Pending => "pending",
            State::Confirmed => "confirmed",
            State::PendingDeletion => "pendingDeletion",
        })
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<State, String> {
        match text {
            "pending" => Ok(State::Pending),
            "confirmed" => Ok(State::Confirmed),
            "pendingDeletion" => Ok(State::PendingDeletion),
            other => Err(format!("state is {other:?}, none of pending, confirmed and pendingDeletion")),
        }
    }
}

/// One block as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub block: IpNetwork,
    pub node: String,
    pub state: State,
    /// Grows by one with every write.
    pub sequence: u64,
    /// Addresses that the owner has set aside for nodes that find no block.
    pub offered: BTreeSet<IpAddr>,
    /// Addresses that other nodes use, with their names.
    pub borrowed: BTreeMap<IpAddr, String>,
    /// Of the borrowed ones, those whose borrower seems to be gone. One that is not takes the mark away before it goes on.
    pub reclaimed: BTreeSet<IpAddr>,
    /// Addresses that other nodes ask the owner for, with their names.
    pub requested: BTreeMap<IpAddr, String>,
}

impl Affinity {
    /// A block of which nothing is at other nodes.
    pub fn new(block: IpNetwork, node: &str, state: State, sequence: u64) -> Affinity {
        Affinity {
            block,
            node: node.to_owned(),
            state,
            sequence,
            offered: BTreeSet::new(),
            borrowed: BTreeMap::new(),
            reclaimed: BTreeSet::new(),
            requested: BTreeMap::new(),
        }
    }

    /// Whether addresses of it are at other nodes, or may be at any moment.
    pub fn is_lent(&self) -> bool {
        !self.offered.is_empty() || !self.borrowed.is_empty()
    }

    /// Fields as text. What there is nothing of is left out.
    pub fn to_fields(&self) -> BTreeMap<String, String> {
        let nodes = |all: &BTreeMap<IpAddr, String>| {
            all.iter().map(|(address, node)| format!("{address}={node}")).collect::<Vec<_>>().join(" ")
        };
        let list = |all: &BTreeSet<IpAddr>| all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
        let fields = [
            ("block", self.block.to_string()),
            ("node", self.node.clone()),
            ("state", self.state.to_string()),
            ("sequence", self.sequence.to_string()),
            ("offered", list(&self.offered)),
            ("borrowed", nodes(&self.borrowed)),
            ("reclaimed", list(&self.reclaimed)),
            ("requested", nodes(&self.requested)),
        ];
        let present = fields.into_iter().filter(|(_, value)| !value.is_empty());
        present.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// # Errors
    /// Which field is wrong, and how.
    pub fn from_fields(fields: &BTreeMap<String, String>) -> Result<Affinity, String> {
        let field = |name: &str| fields.get(name).ok_or_else(|| format!("its data has no {name}"));
        let words = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default().split_whitespace();
        let block: IpNetwork =
            field("block")?.parse().map_err(|error| format!("its block is no CIDR: {error}"))?;
        if block.ip() != block.network() {
            return Err(format!("its block {block} has host bits set"));
        }
        let address = |name: &str, text: &str| match text.parse::<IpAddr>() {
            Ok(address) if block.contains(address) => Ok(address),
            _ => Err(format!("its {name} has {text:?}, which is no address of {block}")),
        };
        let nodes = |name: &str| {
            words(name)
                .map(|word| match word.split_once('=') {
                    Some((text, node)) if !node.is_empty() => Ok((address(name, text)?, node.to_owned())),
                    _ => Err(format!("its {name} has {word:?}, which is not ADDRESS=NODE")),
                })
                .collect::<Result<BTreeMap<_, _>, String>>()
        };
        Ok(Affinity {
            block,
            node: field("node")?.clone(),
            state: field("state")?.parse()?,
            sequence: field("sequence")?
                .parse()
                .map_err(|error| format!("its sequence is no number: {error}"))?,
            offered: words("offered").map(|text| address("offered", text)).collect::<Result<_, _>>()?,
            borrowed: nodes("borrowed")?,
            reclaimed: words("reclaimed").map(|text| address("reclaimed", text)).collect::<Result<_, _>>()?,
            requested: nodes("requested")?,
        })
    }

    /// Whether a node has borrowed the address, and is not taken for gone.
    pub(crate) fn lends(&self, address: IpAddr, to: &str) -> bool {
        self.borrowed.get(&address).is_some_and(|node| node == to) && !self.reclaimed.contains(&address)
    }

    /// The same as it is to be next.
    pub(crate) fn next(&self) -> Affinity {
        Affinity { sequence: self.sequence + 1, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affinity(block: &str) -> Affinity {
        Affinity::new(block.parse().unwrap(), "sw-node1", State::Pending, 7)
    }

    #[test]
    fn a_block_survives_its_fields() {
        let mut lent = affinity("10.244.0.64/26");
        lent.offered = [65, 66].map(|host| IpAddr::from([10, 244, 0, host])).into();
        lent.borrowed = [(IpAddr::from([10, 244, 0, 67]), "n2".to_owned())].into();
        lent.reclaimed = [IpAddr::from([10, 244, 0, 67])].into();
        lent.requested = [(IpAddr::from([10, 244, 0, 68]), "n3".to_owned())].into();
        for affinity in [lent, affinity("fd00:10:244::40/122")] {
            assert_eq!(Affinity::from_fields(&affinity.to_fields()), Ok(affinity));
        }
        let plain = affinity("10.244.0.64/26").to_fields();
        assert_eq!(plain.keys().collect::<Vec<_>>(), ["block", "node", "sequence", "state"]);
    }

    #[test]
    fn a_damaged_field_is_named() {
        for (field, value) in [
            ("state", "maybe"),
            ("block", "10.244.0.65/26"),
            ("sequence", "-1"),
            ("offered", "10.244.1.1"),
            ("borrowed", "10.244.0.65"),
            ("requested", "10.244.0.65="),
        ] {
            let mut fields = affinity("10.244.0.64/26").to_fields();
            fields.insert(field.to_owned(), value.to_owned());
            let error = Affinity::from_fields(&fields).unwrap_err();
            assert!(error.contains(field), "{field}: {error}");
        }
        let mut fields = affinity("10.244.0.64/26").to_fields();
        fields.remove("node");
        assert!(Affinity::from_fields(&fields).unwrap_err().contains("node"));
    }
}
