//! How much stack the programs need where the kernel counts most for it.
//!
//! All functions of a call share 512 bytes. Up to Linux 6.7 each counts as a multiple of 32 and as 32 at least, later
//! as a multiple of 16: what loads here may be refused there, and that verifier is not at hand when programs are built.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind, SymbolSection,
};

/// Of all functions of a call together, in bytes (MAX_BPF_STACK).
pub(super) const LIMIT: u32 = 512;
const STEP: u32 = 32;
const INSTRUCTION: usize = 8;

/// Where a function begins.
type Place = (usize, u64);

#[derive(Default)]
struct Function {
    name: String,
    /// The lowest byte of its frame that it touches, counted from above.
    depth: u32,
    calls: Vec<Place>,
}

/// The call that needs most.
pub(super) struct Deepest {
    pub(super) bytes: u32,
    /// Functions with the depth of their frames.
    pub(super) chain: Vec<(String, u32)>,
}

impl std::fmt::Display for Deepest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} of {LIMIT} bytes:", self.bytes)?;
        self.chain.iter().try_for_each(|(name, depth)| write!(formatter, " {name} {depth}"))
    }
}

/// Looks at every function of an object file, whether it is a program or called by one.
pub(super) fn deepest(object: &[u8]) -> Result<Deepest> {
    let file = object::File::parse(object).context("parsing the BPF object")?;
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let SymbolSection::Section(section) = symbol.section() else { continue };
        let mut function = function(&file, section, symbol.address(), symbol.size())?;
        function.name = symbol.name().context("a function without a name")?.to_owned();
        functions.insert((section.0, symbol.address()), function);
    }
    let places: Vec<Place> = functions.keys().copied().collect();
    let chains = places.iter().map(|place| below(&functions, *place, 0));
    let deepest = chains.max_by_key(|chain| chain.bytes).context("the BPF object has no functions")?;
    Ok(deepest)
}

fn function(file: &object::File<'_>, section: SectionIndex, address: u64, size: u64) -> Result<Function> {
    let found = file.section_by_index(section).context("a function's section")?;
    let data = found.data().context("reading a section")?;
    let targets: BTreeMap<u64, Place> = found
        .relocations()
        .filter_map(|(at, relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else { return None };
            let symbol = file.symbol_by_index(index).ok()?;
            Some((at, (symbol.section_index()?.0, symbol.address())))
        })
        .collect();
    let range = usize::try_from(address)?..usize::try_from(address + size)?;
    let code = data.get(range).context("a function outside of its section")?;
    let mut function = Function::default();
    // Registers that hold an address in the frame, as far as a glance tells.
    let mut frame = [false; 16];
    for (at, bytes) in (address..).step_by(INSTRUCTION).zip(code.chunks_exact(INSTRUCTION)) {
        let (target, source) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
        let offset = i16::from_le_bytes([bytes[2], bytes[3]]);
        let number = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let touched = match (bytes[0] & 7, bytes[0]) {
            // Loads by way of r10, and stores.
            (1, _) if source == 10 => i32::from(offset),
            (2 | 3, _) if target == 10 => i32::from(offset),
            // An address: r = r10, r += number.
            (_, 0x07) if frame[target] => number,
            (_, 0x85) if source == 1 => {
                let (section, base) = targets.get(&at).copied().unwrap_or((section.0, at));
                let ahead = (i64::from(number) + 1) * INSTRUCTION as i64;
                function.calls.push((section, base.wrapping_add_signed(ahead)));
                0
            }
            _ => 0,
        };
        frame[target] = bytes[0] == 0xbf && source == 10;
        function.depth = function.depth.max(touched.min(0).unsigned_abs());
    }
    Ok(function)
}

/// The deepest call that begins with a function. The verifier allows eight functions in one.
fn below(functions: &BTreeMap<Place, Function>, place: Place, level: u32) -> Deepest {
    let Some(function) = functions.get(&place) else { return Deepest { bytes: 0, chain: Vec::new() } };
    let called = function.calls.iter().filter(|_| level < 8).map(|call| below(functions, *call, level + 1));
    let mut deepest =
        called.max_by_key(|chain| chain.bytes).unwrap_or(Deepest { bytes: 0, chain: Vec::new() });
    deepest.bytes += function.depth.next_multiple_of(STEP).max(STEP);
    deepest.chain.insert(0, (function.name.clone(), function.depth));
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(depth: u32, calls: &[u64]) -> Function {
        let calls = calls.iter().map(|address| (1, *address)).collect();
        Function { name: depth.to_string(), depth, calls }
    }

    #[test]
    fn each_function_of_the_deepest_call_counts_in_steps() {
        let functions = [of(256, &[8, 16]), of(136, &[24]), of(160, &[]), of(0, &[])];
        let functions: BTreeMap<Place, Function> =
            (0..).step_by(8).map(|address| (1, address)).zip(functions).collect();
        let deepest = below(&functions, (1, 0), 0);
        assert_eq!(deepest.to_string(), "448 of 512 bytes: 256 256 136 136 0 0");
    }

    #[test]
    fn functions_that_call_each_other_come_to_an_end() {
        let functions = BTreeMap::from([((1, 0), of(8, &[0]))]);
        assert_eq!(below(&functions, (1, 0), 0).chain.len(), 9);
    }
}
