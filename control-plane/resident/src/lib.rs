//! Gives back the memory of what only the start needed of the program.
//!
//! Pages of the program's file that were read once stay resident until the machine is short of memory, and count as the
//! program's until then. Reading one again costs no disk access while the file is cached.

/// Unmaps the resident pages of those parts of the program that nothing can write to; the next access maps them again.
pub fn give_back_program() {
    // SAFETY: the callback has the signature that is asked for, does not unwind, and the pointer it gets is not used.
    unsafe { libc::dl_iterate_phdr(Some(give_back_object), std::ptr::null_mut()) };
}

unsafe extern "C" fn give_back_object(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the linker calls this with an object that is valid during the call, and its headers are `dlpi_phnum` long.
    let (base, headers) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    for header in headers {
        let is_loaded = header.p_type == libc::PT_LOAD;
        // What is written at least once, by relocation, has no copy in the file.
        if !is_loaded || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let Some((start, length)) = whole_pages(base + header.p_vaddr, header.p_filesz) else { continue };
        // SAFETY: whole pages of a segment that is mapped from the file and never writable, so that what is dropped is read
        // again from the file as it was. Nothing is borrowed from it mutably.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    0
}

/// The whole pages within a range of bytes: their start and length.
fn whole_pages(start: u64, length: u64) -> Option<(usize, usize)> {
    // SAFETY: asks for a constant of the system.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok().filter(|page| *page > 0)?;
    let first = start.next_multiple_of(page);
    let length = (start + length).saturating_sub(first) / page * page;
    if length == 0 {
        return None;
    }
    Some((usize::try_from(first).ok()?, usize::try_from(length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_of_files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    #[test]
    fn what_is_given_back_is_less_and_still_works() {
        let before = resident_of_files();
        give_back_program();
        let after = resident_of_files();
        assert!(after < before, "{after} kB of {before} kB are resident");
        assert_eq!(std::collections::BTreeMap::from([(1, "one")])[&1], "one");
        let refused = "x".parse::<u32>().unwrap_err().to_string();
        assert!(refused.contains("invalid digit"), "{refused}");
    }

    #[test]
    fn only_whole_pages_within_a_range_are_meant() {
        let page = u64::try_from(whole_pages(0, 1 << 30).unwrap().1).unwrap() / (1 << 30);
        assert_eq!(page, 1, "all of a range of whole pages");
        assert_eq!(whole_pages(1, 10), None);
        let (start, length) = whole_pages((1 << 20) + 1, 1 << 20).unwrap();
        assert!(start > 1 << 20 && start + length <= (2 << 20) + 1 && length > 0);
    }
}
