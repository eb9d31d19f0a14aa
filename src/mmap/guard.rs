//! Signals that end a program: told to a thread of its own, which can do more than a signal handler may.
//!
//! A handler only writes the signal's number into a pipe. After SIGBUS in a registered map the thread that faulted also
//! stays where it is: there is nothing that it could go on with.

use super::ranges;
use crate::error::{Error, Result};
use libc::{c_int, c_void, siginfo_t};
use std::fmt;
use std::io::{PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Why a guarded program must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// It was asked to, by SIGHUP, SIGINT or SIGTERM: the signal's number.
    Signal(i32),
    /// A file became shorter while it was mapped, or the disk failed under it.
    Shortened(PathBuf),
}

impl Interrupt {
    /// What the program should exit with: 2, as after other errors, or 128 and the signal's number.
    pub fn exit_code(&self) -> i32 {
        match self {
            Interrupt::Signal(number) => 128 + number,
            Interrupt::Shortened(_) => 2,
        }
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interrupt::Signal(number) => write!(f, "ended by signal {number}"),
            Interrupt::Shortened(path) => write!(
                f,
                "{}: the file became shorter or unreadable while it was in use; run again, and replace such files by renaming",
                path.display()
            ),
        }
    }
}

/// What handlers need, set before the first is installed.
struct Installed {
    pipe: PipeWriter,
    /// What SIGBUS did before; faults outside registered maps still do it.
    bus: libc::sigaction,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();
/// The address of a fault in a registered map.
static FAULT: AtomicUsize = AtomicUsize::new(0);

/// Whether [`guard`] has been called in this process.
pub(super) fn active() -> bool {
    INSTALLED.get().is_some()
}

/// From now on files are mapped by [`open`](super::open), and `then` is called, on a thread of its own and at most once,
/// when one of them became shorter or the process is asked to end by SIGHUP, SIGINT or SIGTERM. `then` is expected to
/// remove what should not stay ([`abandon`](crate::whole_file::abandon)) and to end the process; if a file became
/// shorter and it returns, the thread that read it waits for ever. A second signal of the same kind has its usual
/// effect, and one that was ignored when this is called stays ignored.
///
/// For programs, which own the signals of their process; libraries leave them alone.
///
/// # Errors
/// [`Error::Request`] if it was called before, [`Error::Io`] if the system gives no pipe or thread.
pub fn guard(then: impl FnOnce(Interrupt) + Send + 'static) -> Result<()> {
    let failed = |source| Error::Io { action: "prepare for signals", path: PathBuf::new(), source };
    let (mut reader, pipe) = std::io::pipe().map_err(failed)?;
    let installed = Installed { pipe, bus: current(libc::SIGBUS) };
    if INSTALLED.set(installed).is_err() {
        return Err(Error::request("guard", "one call per process", "another"));
    }
    let wait = move || {
        let mut number = [0];
        if reader.read_exact(&mut number).is_ok() {
            let shortened = i32::from(number[0]) == libc::SIGBUS;
            then(match shortened.then(|| ranges::path(FAULT.load(SeqCst))) {
                Some(path) => Interrupt::Shortened(path.unwrap_or_default()),
                None => Interrupt::Signal(i32::from(number[0])),
            });
        }
        // Later signals must not find the pipe closed.
        std::mem::forget(reader);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    install(libc::SIGBUS, libc::SA_SIGINFO | libc::SA_ONSTACK, bus);
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        if current(signal).sa_sigaction != libc::SIG_IGN {
            install(signal, libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | libc::SA_RESETHAND, asked);
        }
    }
    Ok(())
}

/// What `signal` does now.
fn current(signal: c_int) -> libc::sigaction {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action the call only fills the structure, which it may.
    unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeros are a valid action, and the call wrote a valid one.
    unsafe { action.assume_init() }
}

fn install(signal: c_int, flags: c_int, handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void)) {
    // SAFETY: all zeros are a valid action.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    (action.sa_sigaction, action.sa_flags) = (handler as *const () as usize, flags);
    // SAFETY: the action is valid and its handler does only what handlers may: it reads and writes atomics, calls
    // functions that POSIX lists as safe there, and keeps errno.
    unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
}

/// SIGHUP, SIGINT and SIGTERM.
extern "C" fn asked(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    tell(signal);
}

/// SIGBUS.
extern "C" fn bus(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the system hands a handler that asked for it a valid description of the signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Signals that processes send have codes of at most 0, and no address.
    if code > 0 && ranges::holds(address) {
        if FAULT.compare_exchange(0, address, SeqCst, SeqCst).is_ok() {
            tell(signal);
        }
        loop {
            // SAFETY: it takes nothing and returns after a signal.
            unsafe { libc::pause() };
        }
    }
    if code > 0 {
        // The instruction runs again and faults again, for whoever handled it before.
        let before = INSTALLED.get().map_or(ptr::null(), |installed| &raw const installed.bus);
        // SAFETY: the action is the one that this handler replaced.
        unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
    } else {
        // A signal that was sent is sent again, to the default action: the handler before may expect a fault.
        // SAFETY: the default is an action for any signal, and any signal may be raised.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// Writes a signal's number into the pipe.
fn tell(signal: c_int) {
    let Some(installed) = INSTALLED.get() else { return };
    let number = [signal as u8];
    // SAFETY: errno is a plain variable of this thread; the byte outlives the call.
    unsafe {
        let errno = errno();
        let kept = *errno;
        libc::write(installed.pipe.as_raw_fd(), number.as_ptr().cast(), 1);
        *errno = kept;
    }
}

/// Where this thread's error number is.
fn errno() -> *mut c_int {
    #[cfg(target_os = "linux")]
    // SAFETY: it takes nothing.
    return unsafe { libc::__errno_location() };
    #[cfg(any(target_vendor = "apple", target_os = "freebsd"))]
    // SAFETY: it takes nothing.
    return unsafe { libc::__error() };
    #[cfg(not(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd")))]
    // SAFETY: it takes nothing.
    return unsafe { libc::__errno() };
}
