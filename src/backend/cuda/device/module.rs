//! Modules on a device: compiled side by side, and shared by all that use the device.

use super::fault::{Answer, INVALID_PTX, UNSUPPORTED_PTX, fault};
use super::list::DeviceInfo;
use crate::backend::cuda::driver::{isa_of_driver, isa_version};
use crate::error::{Error, Result};
use cust::context::{Context, CurrentContext};
use cust::function::FunctionAttribute;
use cust::sys::{self, CUresult};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use xxhash_rust::xxh3::xxh3_64;

/// Dynamic shared memory that a kernel may use without asking.
const COMMON_SHARED: usize = 48 << 10;

/// What this process has loaded and uses, by context and hash of the text: a device that is opened again compiles
/// nothing again.
static IN_USE: Mutex<BTreeMap<(usize, u64), Weak<Loaded>>> = Mutex::new(BTreeMap::new());

/// A table, whatever became of a thread that held it: no table here is ever left half changed.
fn locked<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A module in a context.
pub(super) struct Loaded {
    module: cust::module::Module,
    pub ptx: String,
    /// Dynamic shared memory that kernels were allowed, where that is more than is common.
    shared: Mutex<BTreeMap<String, usize>>,
    pub context: Arc<Context>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Unloading takes the context; without it the module goes with the context.
        let _ = CurrentContext::set_current(&*self.context);
    }
}

/// A module on a [`Device`](super::Device).
pub struct Module(pub(super) Arc<Loaded>);

/// What a kernel takes of a multiprocessor, as the driver compiled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes of a thread in local memory: spilled registers and stack.
    pub local: usize,
    /// Bytes of a block in shared memory, dynamic ones not counted.
    pub shared: usize,
    /// The most threads of a block.
    pub threads: usize,
}

impl Module {
    /// What the kernel `name` takes.
    pub fn resources(&self, name: &str) -> Result<Resources> {
        let what = || format!("kernel {name}");
        CurrentContext::set_current(&*self.0.context).or_fault(what())?;
        let function = self.0.module.get_function(name).or_fault(what())?;
        let number = |attribute| function.get_attribute(attribute).or_fault(what()).map(|n| n as usize);
        Ok(Resources {
            registers: number(FunctionAttribute::NumRegisters)?,
            local: number(FunctionAttribute::LocalSizeBytes)?,
            shared: number(FunctionAttribute::SharedMemorySizeBytes)?,
            threads: number(FunctionAttribute::MaxThreadsPerBlock)?,
        })
    }
}

impl Loaded {
    /// The module of this text in `context`, compiled unless it is there. `name` is for reports.
    pub fn of(context: &Arc<Context>, info: &DeviceInfo, name: &str, ptx: &str) -> Result<Arc<Self>> {
        let key = (context.as_raw() as usize, xxh3_64(ptx.as_bytes()));
        let there = locked(&IN_USE).get(&key).and_then(Weak::upgrade);
        if let Some(loaded) = there.filter(|loaded| loaded.ptx == ptx) {
            return Ok(loaded);
        }
        let what = || format!("module {name}");
        CurrentContext::set_current(&**context).or_fault(what())?;
        let text = CString::new(ptx).map_err(|_| Error::device(what(), "text", "a zero byte"))?;
        let module = cust::module::Module::from_ptx_cstr(&text, &[]);
        let module = module.map_err(|_| explain(info, what(), &text, isa_version(ptx)))?;
        let loaded = Arc::new(Loaded { module, ptx: ptx.into(), shared: Mutex::default(), context: context.clone() });
        let mut in_use = locked(&IN_USE);
        in_use.retain(|_, module| module.strong_count() > 0);
        in_use.insert(key, Arc::downgrade(&loaded));
        Ok(loaded)
    }

    /// Several modules, names and texts, compiled by as many threads as there are processors: one takes up to a second.
    pub fn all(context: &Arc<Context>, info: &DeviceInfo, texts: &[(&str, &str)]) -> Result<Vec<Arc<Self>>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(texts.len());
        if threads < 2 {
            return texts.iter().map(|(name, ptx)| Self::of(context, info, name, ptx)).collect();
        }
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Arc<Self>>>>> = texts.iter().map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some((name, ptx)) = texts.get(at) else { return };
                        *locked(&results[at]) = Some(Self::of(context, info, name, ptx));
                    }
                });
            }
        });
        let taken = |result: Mutex<_>| result.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.into_iter().map(|result| taken(result).expect("each was taken by a thread")).collect()
    }

    /// The kernel `name`, which may take `dynamic_shared` bytes of dynamic shared memory from now on, and keeps what it
    /// was allowed before.
    pub fn function(&self, name: &str, dynamic_shared: usize) -> Result<sys::CUfunction> {
        let what = || format!("kernel {name}");
        let raw = self.module.get_function(name).or_fault(what())?.to_raw();
        let mut shared = locked(&self.shared);
        if dynamic_shared > shared.get(name).copied().unwrap_or(COMMON_SHARED) {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module; the number fits, being at most the device's.
            unsafe { sys::cuFuncSetAttribute(raw, attribute, dynamic_shared as i32) }.or_fault(what())?;
            shared.insert(name.into(), dynamic_shared);
        }
        Ok(raw)
    }
}

/// Why the driver of a device refuses a module.
fn explain(info: &DeviceInfo, what: String, ptx: &CString, isa: &str) -> Error {
    let mut log = vec![0u8; 4096];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), (log.len() - 1) as *mut _];
    let mut module = ptr::null_mut();
    // SAFETY: the text ends in a zero; two options with their values; the log is as long as it claims.
    let answer = unsafe {
        sys::cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
    };
    if answer == CUresult::CUDA_SUCCESS {
        // SAFETY: it was loaded a line above, and nothing refers to it.
        unsafe { sys::cuModuleUnload(module) };
    }
    let log = String::from_utf8_lossy(&log);
    let log = log.trim_end_matches('\0').lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>();
    let log = if log.is_empty() { format!("CUDA error {}", answer as u32) } else { log.join("; ") };
    let (major, minor) = info.driver;
    match answer as u32 {
        INVALID_PTX | UNSUPPORTED_PTX => Error::device(
            what,
            format!("a driver that compiles PTX {isa}; update it if it is older"),
            format!("CUDA {major}.{minor}, which compiles PTX up to {}: {log}", isa_of_driver(major, minor)),
        ),
        0 => Error::device(what, "a driver that gives one answer", "a failure, then success"),
        code => match fault(what, code) {
            Error::Device { what, expected, got, .. } => Error::device(what, expected, format!("{got}: {log}")),
            other => other,
        },
    }
}
