//! The program that sends packets on before they cost a socket buffer, on the uplink and nowhere else.
//!
//! It is an optimisation: without it tc serves the same flows from the same maps, and while it is replaced, attached or
//! detached, flows go on. Its links are pinned as the others are: `links/xdp-driver-2`, `links/xdp-generic-2`.
//!
//! Where nothing is said, it is attached only in the drivers of network cards that are known to carry it. Generic XDP runs
//! behind the point where a socket buffer was made, so it costs what it should save; a veth's peer loses its segmentation
//! offload, and hands over packets whose checksum nobody has finished, as virtio and vmxnet3 may too. With VLANs on the link
//! a card may take the tag off before the program looks. A program of somebody else on the link is left alone.

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use super::{ProgramError, Programs, attach_error, detach_pinned, interface_name};
use crate::{
    bpf::{self, AttachType, Target},
    links::Links,
};

pub(super) const PROGRAM: &str = "uplink_xdp";
const PREFIX: &str = "xdp-";

/// Drivers that run programs on what they received, whole and with verified checksums, and send from there.
const DRIVERS: [&str; 11] =
    ["bnxt_en", "i40e", "ice", "igb", "igc", "ixgbe", "mlx4_en", "mlx5_core", "nfp", "qede", "sfc"];

/// Where in a link's receive path the program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver, before there is a socket buffer.
    Driver,
    /// In the kernel's stack, on a socket buffer. For tests, and links whose drivers have no XDP.
    Generic,
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Driver, Self::Generic];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Generic => "generic",
        }
    }

    /// XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE of linux/if_link.h.
    const fn flags(self) -> u32 {
        match self {
            Self::Driver => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// What is wanted of XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpSetting {
    /// In the driver, where that is known to be good for all traffic of the link.
    #[default]
    Auto,
    In(XdpMode),
    Off,
}

impl std::str::FromStr for XdpSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => XdpMode::ALL
                .into_iter()
                .find(|mode| mode.name() == other)
                .map(Self::In)
                .ok_or_else(|| format!("{other:?} is none of auto, driver, generic, off")),
        }
    }
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum XdpState {
    In(XdpMode),
    /// And why.
    Off(String),
}

impl Programs {
    /// Runs the program on the link where `setting` wants it, and nowhere else; links of an earlier agent that are not
    /// wanted go. Where the link cannot have what is wanted, the state says why, and tc does all.
    pub fn set_xdp(&self, interface_index: u32, setting: XdpSetting) -> Result<XdpState, ProgramError> {
        let wanted = match setting {
            XdpSetting::Off => Err("it is switched off".to_owned()),
            XdpSetting::In(mode) => Ok(mode),
            XdpSetting::Auto => fitness(interface_index).map(|()| XdpMode::Driver),
        };
        let keep = wanted.as_ref().ok().map(|mode| link_name(*mode, interface_index));
        self.detach_xdp_but(keep.as_deref())?;
        let mode = match wanted {
            Ok(mode) => mode,
            Err(reason) => return Ok(XdpState::Off(reason)),
        };
        let pin = self.link_path(&link_name(mode, interface_index));
        let target = Target::Interface(interface_index);
        if is_attached(&pin, target) {
            // With the program of this agent, since it was loaded.
            return Ok(XdpState::In(mode));
        }
        detach_pinned(&pin)?;
        let created =
            bpf::link_create_with(self.fd(PROGRAM)?, interface_index, AttachType::Xdp, mode.flags());
        let link = match created {
            Ok(link) => link,
            Err(error) => return refused(error, mode, target),
        };
        bpf::pin(link.as_fd(), &pin).map_err(|source| ProgramError::Pin { path: pin, source })?;
        Ok(XdpState::In(mode))
    }

    fn detach_xdp_but(&self, keep: Option<&str>) -> Result<(), ProgramError> {
        let links = self.directory.join("links");
        let failed = |source| ProgramError::FileSystem { path: links.clone(), source };
        for entry in fs::read_dir(&links).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && Some(name.as_str()) != keep {
                detach_pinned(Path::new(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// What a link or its driver cannot have is no error.
fn refused(error: io::Error, mode: XdpMode, target: Target) -> Result<XdpState, ProgramError> {
    let why = match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another program is attached to the link".to_owned(),
        Some(libc::EOPNOTSUPP) => "the link's driver has no XDP".to_owned(),
        // What drivers say of an MTU, queues or offloads that do not go together with it.
        Some(libc::EINVAL | libc::ERANGE | libc::ENOSPC | libc::ENOMEM | libc::E2BIG) => {
            format!("the link's driver refuses it: {error}")
        }
        _ => return Err(attach_error(PROGRAM, target, error)),
    };
    Ok(XdpState::Off(format!("{} mode: {why}", mode.name())))
}

fn is_attached(pin: &Path, target: Target) -> bool {
    bpf::get_pinned(pin).and_then(|link| bpf::link_target(link.as_fd())).is_ok_and(|actual| actual == target)
}

fn link_name(mode: XdpMode, interface_index: u32) -> String {
    format!("{PREFIX}{}-{interface_index}", mode.name())
}

/// The program of a link by the link's name.
pub(super) fn program_of_link(name: &str) -> Option<&'static str> {
    name.starts_with(PREFIX).then_some(PROGRAM)
}

/// Whether the program is good for the link when nobody asked for it, else why not.
fn fitness(interface_index: u32) -> Result<(), String> {
    let name = interface_name(PROGRAM, interface_index).map_err(|error| error.to_string())?;
    let driver = driver_of(&name).map_err(|error| format!("the driver of {name} is not known: {error}"))?;
    if !DRIVERS.contains(&driver.as_str()) {
        return Err(format!("the driver of {name}, {driver}, is none of {}", DRIVERS.join(", ")));
    }
    let above = Links::open().and_then(|mut links| links.above(interface_index));
    match above.map_err(|error| format!("the links on {name} are not known: {error}"))?.first() {
        Some(above) => {
            Err(format!("{above} stands on {name}, and a card may take a VLAN's tag off too early"))
        }
        None => Ok(()),
    }
}

/// The name of a link's driver, as ETHTOOL_GDRVINFO has it.
fn driver_of(interface: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const NAME_BYTES: usize = 32;
    /// struct ethtool_drvinfo of linux/ethtool.h.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; NAME_BYTES],
        rest: [u8; 160],
    }
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; NAME_BYTES], rest: [0; 160] };
    // SAFETY: all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0)))?;
    // SAFETY: the request names an interface and a structure of the size that the command writes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_by_its_name() {
        for (text, setting) in [
            ("auto", XdpSetting::Auto),
            ("driver", XdpSetting::In(XdpMode::Driver)),
            ("generic", XdpSetting::In(XdpMode::Generic)),
            ("off", XdpSetting::Off),
        ] {
            assert_eq!(text.parse(), Ok(setting));
        }
        assert_eq!(
            "on".parse::<XdpSetting>(),
            Err("\"on\" is none of auto, driver, generic, off".to_owned())
        );
    }

    #[test]
    fn loopback_is_no_link_to_attach_to_when_nobody_asked() {
        let reason = fitness(1).expect_err("loopback");
        assert!(reason.contains("lo"), "{reason}");
    }
}
