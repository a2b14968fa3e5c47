//! The BPF programs: loaded with the pinned maps, attached by pinned links, replaced in place.
//!
//! Everything that the kernel keeps for us has a name under one folder of a BPF file system, so that several nodes on
//! one machine stay apart and a new agent finds what the old one left:
//!
//! ```text
//!   maps/NAME                       contents outlive the agent
//!   next/NAME                       a map that is not in use yet
//!   programs/NAME                   for bpftool
//!   links/cgroup-connect4 …         a link keeps its program attached while no agent runs
//!   links/tc-pod-12-ingress …       role and interface index
//!   links/xdp-driver-2              mode and interface index
//! ```
//!
//! A new agent loads its programs, fills maps whose layout is new from the old ones, makes the programs that others call
//! known, and updates each link: the kernel changes the pointer, and no packet or call passes without a program. Below
//! Linux 6.6 there are no tc links; then clsact filters with a fixed handle do the same: those in the network namespace of the
//! caller are replaced at once, and others when the new agent attaches to their interface again.
//!
//! Maps of another size than this agent's, or of an older layout, are exchanged on the way ([`crate::swap`]). One of a newer
//! layout is refused, and all goes on as it is.

mod xdp;

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, TcAttachType, tc},
};

use ebpf_common::{Call, maps, maps::bridged};

use crate::{
    bpf::{self, AttachType, Target},
    clsact::{self, Filter, Parent},
    datapath::Config,
    maps::MapError,
    services,
    swap::{self, Hooks, Step, Swap},
};

pub use xdp::{XdpMode, XdpSetting, XdpState};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/seaway.o"));

const SOCKET_PROGRAMS: [(&str, AttachType); 9] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("sock_release", AttachType::SockRelease),
];

/// The map that programs log to.
const LOG: &str = "AYA_LOGS";

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("this binary was built without the BPF object: run `cargo xtask build`, then build again")]
    NoObject,
    #[error("preparing the BPF file system at {}", path.display())]
    FileSystem { path: PathBuf, source: io::Error },
    #[error("loading the BPF object")]
    Object(#[source] Box<aya::EbpfError>),
    #[error("the kernel refused the BPF program {name}")]
    Load { name: String, source: Box<aya::programs::ProgramError> },
    #[error("the BPF object has no program {0}")]
    Missing(String),
    #[error("{} is not a cgroup v2 directory: socket programs attach only there", .0.display())]
    NotCgroup2(PathBuf),
    #[error("opening the cgroup {}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("attaching the BPF program {program} to {target}")]
    Attach { program: String, target: String, source: io::Error },
    #[error("attaching the BPF program {program} to {target} with clsact")]
    Clsact { program: String, target: String, source: Box<aya::programs::ProgramError> },
    #[error("pinning {}", path.display())]
    Pin { path: PathBuf, source: io::Error },
    #[error("taking over the Services of an earlier agent")]
    TakeOver(#[source] MapError),
    #[error("making the BPF program {program} known to those that call it")]
    Call { program: &'static str, source: io::Error },
    #[error(
        "{} is of layout {version}, and this agent knows none newer than {own}: a newer agent made it. Its programs go on \
         serving what they serve, and nothing is changed. Run that version again; or unpin the map, which ends the flows \
         and Services that are in it",
        path.display()
    )]
    Newer { path: PathBuf, version: u32, own: u32 },
    #[error("exchanging maps")]
    Exchange(#[from] MapError),
    #[error("looking for filters of clsact")]
    Filters(#[source] io::Error),
    #[error("left off at {0:?}, as was asked for")]
    Halted(Step),
}

/// What a link leads to, which decides the programs on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The host's end of a pod's link.
    Pod,
    /// A link to other machines.
    Uplink,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> AttachType {
        match self {
            Self::Ingress => AttachType::TcxIngress,
            Self::Egress => AttachType::TcxEgress,
        }
    }

    const fn parent(self) -> Parent {
        match self {
            Self::Ingress => Parent::Ingress,
            Self::Egress => Parent::Egress,
        }
    }

    const fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// How tc programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcMode {
    /// By links; upstream since Linux 6.6.
    Tcx,
    /// By filters of the clsact qdisc.
    Clsact,
}

impl TcMode {
    /// The best that the running kernel has, which is asked: a distribution's may have more than its version says.
    pub fn of_kernel() -> Self {
        if bpf::has_interface_hook(AttachType::TcxIngress) { Self::Tcx } else { Self::Clsact }
    }
}

/// How much the programs say of single connections and packets; off costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum LogLevel {
    #[default]
    Off = 0,
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
    Trace = 5,
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            other => Err(format!("{other:?} is none of off, error, warn, info, debug, trace")),
        }
    }
}

/// How the programs of each role are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcModes {
    pub pod: TcMode,
    pub uplink: TcMode,
}

impl TcModes {
    /// An uplink is shared with programs of others, which is what tcx is for. A pod's link is ours alone, and two tcx
    /// links cost it two RCU grace periods under the lock of all links when they come and two when they go: 10 to 20 ms
    /// each, where a filter of clsact takes none.
    pub fn of_kernel() -> Self {
        Self { pod: TcMode::Clsact, uplink: TcMode::of_kernel() }
    }

    pub const fn all(mode: TcMode) -> Self {
        Self { pod: mode, uplink: mode }
    }

    const fn of(self, role: Role) -> TcMode {
        match role {
            Role::Pod => self.pod,
            Role::Uplink => self.uplink,
        }
    }
}

/// How a set of programs is loaded.
#[derive(Clone)]
pub(crate) struct Object<'a> {
    directory: &'a Path,
    pub(crate) log_level: LogLevel,
    /// Of maps that are not there yet.
    pub(crate) entries: Vec<(&'static str, u32)>,
    /// Of maps that are not where they usually are.
    pub(crate) pins: Vec<(&'static str, PathBuf)>,
    /// Bits of [`bridged`].
    pub(crate) bridged: u32,
}

impl<'a> Object<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        // All sets of this process log to one place.
        let log = config.bpf_dir.join("programs").join(LOG);
        Self {
            directory: &config.bpf_dir,
            log_level: config.log_level,
            entries: config.sizes.iter().map(|(map, size)| (map, size.entries)).collect(),
            pins: vec![(LOG, log)],
            bridged: 0,
        }
    }

    pub(crate) fn load(&self) -> Result<Ebpf, ProgramError> {
        let level = self.log_level as u8;
        let mut loader = EbpfLoader::new();
        loader
            .default_map_pin_directory(self.directory.join("maps"))
            .override_global(aya_log::LEVEL, &level, false)
            .override_global(bridged::NAME, &self.bridged, true);
        for (map, entries) in &self.entries {
            loader.map_max_entries(map, *entries);
        }
        for (map, path) in &self.pins {
            loader.map_pin_path(map, path.clone());
        }
        let mut ebpf = loader.load(OBJECT).map_err(|source| ProgramError::Object(Box::new(source)))?;
        for (name, program) in ebpf.programs_mut() {
            load_program(name, program)?;
        }
        Ok(ebpf)
    }
}

#[derive(Debug)]
pub struct Programs {
    directory: PathBuf,
    tc_modes: TcModes,
    ebpf: Ebpf,
}

impl Programs {
    /// Loads all programs over the maps pinned in the folder of `config`, creating what is missing, and puts them into every
    /// link that an earlier agent left. The folder gets a BPF file system where it is not on one.
    pub fn load(config: &Config) -> Result<Self, ProgramError> {
        if OBJECT.is_empty() {
            return Err(ProgramError::NoObject);
        }
        let directory = &config.bpf_dir;
        let maps_dir = directory.join("maps");
        prepare_directory(directory)?;
        swap::refuse_newer(&maps_dir)?;
        unpin(&directory.join("programs").join(LOG))?;
        let swap = Swap::at_start(directory, &config.sizes, config.halt_at)?;
        swap.forget_next()?;
        let object = Object::new(config);
        let of = |ebpf| Self { directory: directory.clone(), tc_modes: config.tc_modes, ebpf };
        let programs = if swap.is_empty() {
            let programs = of(object.load()?);
            take_over(&maps_dir)?;
            programs.install(Hooks::All)?;
            programs
        } else {
            let prepared = swap.prepare(&object)?;
            take_over(&maps_dir)?;
            let mut programs = None;
            swap.carry_out(prepared, |ebpf, hooks| {
                programs = ebpf.map(of).or(programs.take());
                programs.as_ref().map_or(Ok(()), |programs: &Self| programs.install(hooks))
            })?;
            programs.ok_or(ProgramError::NoObject)?
        };
        services::take_over_sockets(&maps_dir).map_err(ProgramError::TakeOver)?;
        maps::RETIRED.iter().try_for_each(|name| unpin(&maps_dir.join(name)))?;
        Ok(programs)
    }

    /// Goes on with other programs, which are in no hook before [`Self::install`].
    pub(crate) fn exchange(&mut self, ebpf: Ebpf) {
        self.ebpf = ebpf;
    }

    /// Puts the programs into hooks that have some. In each of them the kernel changes a pointer.
    pub(crate) fn install(&self, hooks: Hooks) -> Result<(), ProgramError> {
        self.pin_programs()?;
        self.fill_calls(&self.directory.join("maps"))?;
        self.update_links(hooks)?;
        if hooks == Hooks::All { self.update_filters() } else { Ok(()) }
    }

    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Serves the sockets of all processes in a cgroup and below. Attaching again changes nothing.
    ///
    /// # Errors
    /// Where `cgroup` is not a directory of the cgroup v2 tree (on hybrid machines that is /sys/fs/cgroup/unified).
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<(), ProgramError> {
        let file =
            File::open(cgroup).map_err(|source| ProgramError::Cgroup { path: cgroup.to_owned(), source })?;
        let kind = nix::sys::statfs::fstatfs(&file)
            .map_err(|errno| ProgramError::Cgroup { path: cgroup.to_owned(), source: errno.into() })?;
        if kind.filesystem_type().0 as i64 != CGROUP2_SUPER_MAGIC {
            return Err(ProgramError::NotCgroup2(cgroup.to_owned()));
        }
        let inode =
            file.metadata().map_err(|source| ProgramError::Cgroup { path: cgroup.to_owned(), source })?.ino();
        for (name, attach_type) in SOCKET_PROGRAMS {
            let pin = self.link_path(&format!("cgroup-{name}"));
            // The cgroup's id is its inode number, on 64-bit machines.
            self.attach(name, &pin, file.as_raw_fd() as u32, Target::Cgroup(inode), attach_type)?;
        }
        Ok(())
    }

    /// Attaches the role's programs to an interface of the current network namespace. Attaching again changes nothing;
    /// an interface that an earlier agent served by tcx links keeps them.
    pub fn attach_link(&self, interface_index: u32, role: Role) -> Result<(), ProgramError> {
        let mut by_filter = Vec::new();
        for hook in Hook::BOTH {
            let program = program_name(role, hook);
            let pin = self.link_path(&tc_link_name(role, interface_index, hook));
            let target = Target::Interface(interface_index);
            let pinned = bpf::get_pinned(&pin);
            let is_there =
                |link: &OwnedFd| bpf::link_target(link.as_fd()).is_ok_and(|actual| actual == target);
            if self.tc_modes.of(role) == TcMode::Tcx || pinned.as_ref().is_ok_and(is_there) {
                self.attach(&program, &pin, interface_index, target, hook.attach_type())?;
                continue;
            }
            if !pinned.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                // Of an interface that had the index before.
                detach_pinned(&pin)?;
            }
            by_filter.push(hook);
        }
        if by_filter.is_empty() {
            return Ok(());
        }
        self.attach_clsact(role, interface_index, &by_filter)
    }

    /// Undoes [`Self::attach_link`]. Nothing there is no error.
    pub fn detach_link(&self, interface_index: u32, role: Role) -> Result<(), ProgramError> {
        for hook in Hook::BOTH {
            detach_pinned(&self.link_path(&tc_link_name(role, interface_index, hook)))?;
            self.detach_clsact(&program_name(role, hook), interface_index, hook)?;
        }
        Ok(())
    }

    /// Undoes [`Self::attach_cgroup`]. Nothing there is no error.
    pub fn detach_cgroup(&self) -> Result<(), ProgramError> {
        SOCKET_PROGRAMS
            .iter()
            .try_for_each(|(name, _)| detach_pinned(&self.link_path(&format!("cgroup-{name}"))))
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    fn fd(&self, name: &str) -> Result<BorrowedFd<'_>, ProgramError> {
        let program = self.ebpf.program(name).ok_or_else(|| ProgramError::Missing(name.to_owned()))?;
        let fd = program
            .fd()
            .map_err(|source| ProgramError::Load { name: name.to_owned(), source: Box::new(source) })?;
        Ok(fd.as_fd())
    }

    fn pin_programs(&self) -> Result<(), ProgramError> {
        for (name, _) in self.ebpf.programs() {
            let path = self.directory.join("programs").join(name);
            unpin(&path)?;
            bpf::pin(self.fd(name)?, &path).map_err(|source| ProgramError::Pin { path, source })?;
        }
        Ok(())
    }

    /// Puts the programs that others continue in into their places: before a program that calls is attached, so that
    /// none ever finds its place empty.
    fn fill_calls(&self, maps_dir: &Path) -> Result<(), ProgramError> {
        let path = maps_dir.join(maps::CALLS);
        let calls = bpf::get_pinned(&path).map_err(|source| ProgramError::Pin { path, source })?;
        for call in Call::ALL {
            let program = call.program();
            let fd = self.fd(program)?.as_raw_fd() as u32;
            // SAFETY: the map's keys are indexes and its values descriptors of programs, both of 4 bytes.
            unsafe { bpf::update(calls.as_fd(), &(call as u32), &fd) }
                .map_err(|source| ProgramError::Call { program, source })?;
        }
        Ok(())
    }

    /// Puts the programs into all links, or those of sockets; unpins those whose interface or cgroup is gone.
    fn update_links(&self, hooks: Hooks) -> Result<(), ProgramError> {
        let links = self.directory.join("links");
        let entries = fs::read_dir(&links)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(|source| ProgramError::FileSystem { path: links.clone(), source })?;
        for entry in entries {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(program) = program_of_link(&name) else { continue };
            if hooks == Hooks::Sockets && !name.starts_with("cgroup-") {
                continue;
            }
            let link =
                bpf::get_pinned(&path).map_err(|source| ProgramError::Pin { path: path.clone(), source })?;
            match bpf::link_target(link.as_fd()) {
                Ok(Target::Cgroup(0) | Target::Interface(0) | Target::Other) | Err(_) => unpin(&path)?,
                Ok(target) => match bpf::link_update(link.as_fd(), self.fd(&program)?) {
                    // It went between the look and the update.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => unpin(&path)?,
                    result => result.map_err(|source| attach_error(&program, target, source))?,
                },
            }
        }
        Ok(())
    }

    /// Puts the programs into all filters that are ours, in the network namespace of the calling thread.
    fn update_filters(&self) -> Result<(), ProgramError> {
        for (interface_index, parent, name) in clsact::all_attached().map_err(ProgramError::Filters)? {
            if self.ebpf.program(&name).is_none() {
                continue;
            }
            let filter = Filter { parent, name: &name, program: self.fd(&name)? };
            match clsact::attach(interface_index, &[filter]) {
                // The interface went since.
                Err(error) if error.kind() == io::ErrorKind::NotFound || is_no_device(&error) => {}
                result => result
                    .map_err(|source| attach_error(&name, Target::Interface(interface_index), source))?,
            }
        }
        Ok(())
    }

    fn attach(
        &self,
        program: &str,
        pin: &Path,
        raw_target: u32,
        target: Target,
        attach_type: AttachType,
    ) -> Result<(), ProgramError> {
        let fd = self.fd(program)?;
        if let Ok(link) = bpf::get_pinned(pin) {
            let same = bpf::link_target(link.as_fd()).is_ok_and(|actual| actual == target);
            if same && bpf::link_update(link.as_fd(), fd).is_ok() {
                return Ok(());
            }
            detach_pinned(pin)?;
        }
        let link = bpf::link_create(fd, raw_target, attach_type)
            .map_err(|source| attach_error(program, target, source))?;
        bpf::pin(link.as_fd(), pin).map_err(|source| ProgramError::Pin { path: pin.to_owned(), source })
    }

    fn attach_clsact(&self, role: Role, interface_index: u32, hooks: &[Hook]) -> Result<(), ProgramError> {
        let names = hooks.iter().map(|hook| program_name(role, *hook)).collect::<Vec<_>>();
        let filters = hooks
            .iter()
            .zip(&names)
            .map(|(hook, name)| Ok(Filter { parent: hook.parent(), name, program: self.fd(name)? }));
        let filters = filters.collect::<Result<Vec<_>, ProgramError>>()?;
        clsact::attach(interface_index, &filters).map_err(|source| {
            let target = Target::Interface(interface_index);
            attach_error(&names.join(" and "), target, source)
        })
    }

    fn detach_clsact(&self, name: &str, interface_index: u32, hook: Hook) -> Result<(), ProgramError> {
        let Ok(interface) = interface_name(name, interface_index) else { return Ok(()) };
        match tc::qdisc_detach_program(&interface, hook.clsact(), name) {
            Err(tc::TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| ProgramError::Clsact {
                program: name.to_owned(),
                target: interface,
                source: Box::new(error.into()),
            }),
        }
    }
}

/// Removes every pinned object under `directory`: the programs stop serving and the maps are gone. Nothing there is no
/// error. clsact filters go with their interfaces.
pub fn remove_pinned(directory: &Path) -> Result<(), ProgramError> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ProgramError::FileSystem { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The verifier gives up with EAGAIN when a signal is pending, whoever it is for (kernel/bpf/verifier.c, do_check).
fn load_program(name: &str, program: &mut Program) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 10;
    let mut load = || match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
    };
    let is_interrupted = |error: &aya::programs::ProgramError| {
        matches!(error, aya::programs::ProgramError::LoadError { io_error, .. }
            if io_error.raw_os_error() == Some(libc::EAGAIN))
    };
    let mut loaded = load();
    for _ in 1..ATTEMPTS {
        match &loaded {
            Err(error) if is_interrupted(error) => loaded = load(),
            Ok(()) | Err(_) => break,
        }
    }
    loaded.map_err(|source| ProgramError::Load { name: name.to_owned(), source: Box::new(source) })
}

/// Fills maps whose layout is new, before programs that read them are in any hook.
fn take_over(maps_dir: &Path) -> Result<(), ProgramError> {
    services::take_over_frontends(maps_dir)
        .and_then(|()| services::take_over_senders(maps_dir))
        .map_err(ProgramError::TakeOver)
}

fn is_no_device(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

fn program_name(role: Role, hook: Hook) -> String {
    format!("{}_{}", role.name(), hook.name())
}

fn tc_link_name(role: Role, interface_index: u32, hook: Hook) -> String {
    format!("tc-{}-{interface_index}-{}", role.name(), hook.name())
}

/// The inverse of the names that links are pinned under.
fn program_of_link(name: &str) -> Option<String> {
    if let Some(program) = name.strip_prefix("cgroup-") {
        return Some(program.to_owned());
    }
    if let Some(program) = xdp::program_of_link(name) {
        return Some(program.to_owned());
    }
    let mut parts = name.strip_prefix("tc-")?.split('-');
    let (role, _index, hook) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{role}_{hook}"))
}

fn interface_name(program: &str, interface_index: u32) -> Result<String, ProgramError> {
    let failed = |errno: nix::Error| attach_error(program, Target::Interface(interface_index), errno.into());
    let name = nix::net::if_::if_indextoname(interface_index).map_err(failed)?;
    // Where there is none, libc's null pointer passes for success there.
    if name.is_empty() {
        return Err(failed(nix::Error::ENODEV));
    }
    Ok(name.to_string_lossy().into_owned())
}

fn attach_error(program: &str, target: Target, source: io::Error) -> ProgramError {
    let target = match target {
        Target::Cgroup(id) => format!("the cgroup with id {id}"),
        Target::Interface(index) => format!("the interface with index {index}"),
        Target::Other => "its link".to_owned(),
    };
    ProgramError::Attach { program: program.to_owned(), target, source }
}

/// Where the target is gone, the link is detached already, and the kernel says so; unpinning is all that is left.
fn detach_pinned(path: &Path) -> Result<(), ProgramError> {
    if let Ok(link) = bpf::get_pinned(path) {
        let _detached = bpf::link_detach(link.as_fd());
    }
    unpin(path)
}

fn unpin(path: &Path) -> Result<(), ProgramError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ProgramError::Pin { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Makes the folders on a BPF file system, mounting one where there is none yet.
fn prepare_directory(directory: &Path) -> Result<(), ProgramError> {
    const STANDARD: &str = "/sys/fs/bpf";
    let failed = |path: &Path, source: io::Error| ProgramError::FileSystem { path: path.to_owned(), source };
    let mount_point = if directory.starts_with(STANDARD) { Path::new(STANDARD) } else { directory };
    if mount_point == directory {
        fs::create_dir_all(directory).map_err(|source| failed(directory, source))?;
    }
    let kind = nix::sys::statfs::statfs(mount_point).map_err(|errno| failed(mount_point, errno.into()))?;
    if kind.filesystem_type().0 as i64 & 0xffff_ffff != BPF_FS_MAGIC {
        let flags =
            nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("bpf"), mount_point, Some("bpf"), flags, Some("mode=0700"))
            .map_err(|errno| failed(mount_point, errno.into()))?;
    }
    for folder in ["maps", "programs", "links", "next"] {
        let path = directory.join(folder);
        fs::create_dir_all(&path).map_err(|source| failed(&path, source))?;
    }
    Ok(())
}

/// Makes sure that the object has each program under the type that it is attached as.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_a_link_is_found_by_the_links_name() {
        for role in [Role::Pod, Role::Uplink] {
            for hook in Hook::BOTH {
                let link = tc_link_name(role, 12, hook);
                assert_eq!(program_of_link(&link), Some(program_name(role, hook)));
            }
        }
        assert_eq!(program_of_link("cgroup-connect4").as_deref(), Some("connect4"));
        assert_eq!(program_of_link("xdp-driver-2").as_deref(), Some("uplink_xdp"));
        assert_eq!(program_of_link("something"), None);
    }
}
