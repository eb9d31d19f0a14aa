//! A device behind the NVIDIA driver of this machine.
//!
//! The driver is opened at run time (`kernels/driver`): without one [`devices`] is empty and [`Device::open`] says so.
//! `cust` owns contexts, streams, modules and events; what it lacks (graphs, locked pages, launches by one block of bytes)
//! goes through its raw bindings here. Every handle keeps the context that it belongs to alive. Copies are checked
//! against the allocations, launches against the size of the kernel's arguments; what a kernel does with the addresses
//! in them is the back end's to prove.
//!
//! Longer than most files: every call to the driver stands here, each with the proof that it may be made.
#![allow(unsafe_code)]

mod fault;
mod graph;
mod list;
mod module;
mod staging;

pub use graph::Graph;
pub use list::{DeviceInfo, LEAST_CAPABILITY, OLDEST_DRIVER, devices, find_devices, inspect};
pub use module::{Module, Resources};
pub use staging::WeightPath;

use super::driver::{Driver, MemoryInfo, args_bytes};
use crate::error::{Error, Result};
use cust::context::{Context, CurrentContext};
use cust::device::DeviceAttribute;
use cust::event::EventFlags;
use cust::stream::{Stream, StreamFlags};
use cust::sys::{self, CUresult};
use fault::Answer;
use module::Loaded;
use staging::Ring;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

/// The ring for what goes up in every step, and the ring for weights: buffers, bytes each.
const SMALL_RING: (usize, usize) = (4, 256 << 10);
const WEIGHT_RING: (usize, usize) = (2, 64 << 20);

/// A CUDA device and one stream of work.
pub struct Device {
    info: DeviceInfo,
    processors: usize,
    /// The most dynamic shared memory of a block.
    most_shared: usize,
    best_path: WeightPath,
    path: Cell<WeightPath>,
    /// Bytes of every allocation, by address.
    allocations: RefCell<BTreeMap<u64, usize>>,
    /// Names of the functions handed out, for reports.
    names: RefCell<Vec<String>>,
    /// Kept so that functions stay valid.
    modules: RefCell<Vec<Arc<Loaded>>>,
    small: RefCell<Ring>,
    weights: RefCell<Option<Ring>>,
    core: Rc<StreamInContext>,
}

/// What everything else refers to. Fields drop in order: the stream before its context.
struct StreamInContext {
    stream: Stream,
    context: Arc<Context>,
}

impl StreamInContext {
    /// Makes the context this thread's; every call starts so, because there may be two devices.
    fn enter(&self) -> Result<()> {
        CurrentContext::set_current(&*self.context).or_fault("the device's context")
    }
}

/// A kernel of a [`Device`].
#[derive(Clone, Copy)]
pub struct Function {
    raw: sys::CUfunction,
    /// The context it belongs to.
    context: sys::CUcontext,
    name: usize,
    args: usize,
    dynamic_shared: usize,
}

/// A point in the stream of a [`Device`].
pub struct Event {
    inner: cust::event::Event,
    core: Rc<StreamInContext>,
}

impl Device {
    /// Opens the device `index`.
    pub fn open(index: usize) -> Result<Self> {
        let (handle, info) = list::choose(index)?;
        let what = format!("CUDA device {index} ({})", info.name);
        let number = |attribute| handle.get_attribute(attribute).or_fault(&what);
        let processors = number(DeviceAttribute::MultiprocessorCount)? as usize;
        let raw_number = |attribute| {
            let mut value = 0;
            // SAFETY: the handle is valid and the pointer to a live integer.
            let answer = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, handle.as_raw()) };
            answer.or_fault(&what).map(|()| value)
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST_SHARED,
            CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED as LOCKS_READ_ONLY,
        };
        let most_shared = raw_number(MOST_SHARED)? as usize;
        let path = staging::best_path(info.driver, raw_number(LOCKS_READ_ONLY)? != 0);
        let context = Arc::new(Context::new(handle).or_fault(&what)?);
        CurrentContext::set_current(&*context).or_fault(&what)?;
        let stream = Stream::new(StreamFlags::DEFAULT, None).or_fault(&what)?;
        Ok(Device {
            info,
            processors,
            most_shared,
            best_path: path,
            path: Cell::new(path),
            allocations: RefCell::default(),
            names: RefCell::default(),
            modules: RefCell::default(),
            small: RefCell::new(Ring::new(SMALL_RING.0, SMALL_RING.1)?),
            weights: RefCell::default(),
            core: Rc::new(StreamInContext { stream, context }),
        })
    }

    /// What is known of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// How weights get to the device.
    pub fn weight_path(&self) -> WeightPath {
        self.path.get()
    }

    /// The ways that weights can take to the device without harm, the one that is taken unless another is chosen first.
    pub fn weight_paths(&self) -> &'static [WeightPath] {
        match self.best_path {
            WeightPath::Locked => &[WeightPath::Locked, WeightPath::Ring],
            WeightPath::Ring => &[WeightPath::Ring],
        }
    }

    /// Chooses how weights get to the device.
    ///
    /// # Errors
    /// [`Error::Device`] for a way that is not one of [`weight_paths`](Self::weight_paths).
    pub fn set_weight_path(&self, path: WeightPath) -> Result<()> {
        if !self.weight_paths().contains(&path) {
            let expected = format!("one of {:?}", self.weight_paths());
            return Err(Error::device("the way of weights", expected, format!("{path:?}")));
        }
        self.path.set(path);
        Ok(())
    }

    /// Refuses bytes outside every allocation.
    fn check_range(&self, what: &str, at: u64, bytes: usize) -> Result<()> {
        let allocations = self.allocations.borrow();
        let inside = allocations.range(..=at).next_back().is_some_and(|(&start, &len)| {
            let offset = at - start;
            offset <= len as u64 && bytes as u64 <= len as u64 - offset
        });
        if inside {
            return Ok(());
        }
        Err(Error::device(what, "bytes within one allocation of this device", format!("{bytes} bytes at {at:#x}")))
    }

    /// Refuses a handle of another device.
    fn check_owner(&self, what: &str, context: sys::CUcontext) -> Result<()> {
        if context == self.core.context.as_raw() {
            return Ok(());
        }
        Err(Error::device(what, "a handle of this device", "one of another"))
    }

    fn mark_with(&self, flags: EventFlags) -> Result<Event> {
        self.core.enter()?;
        let inner = cust::event::Event::new(flags).or_fault("an event")?;
        inner.record(&self.core.stream).or_fault("marking the stream")?;
        Ok(Event { inner, core: self.core.clone() })
    }
}

impl Driver for Device {
    type Module = Module;
    type Function = Function;
    type Graph = Graph;
    type Event = Event;

    fn name(&self) -> String {
        let (major, minor) = self.info.capability;
        format!("{}, sm_{major}{minor}", self.info.name)
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.core.enter()?;
        let (free, total) = cust::memory::mem_get_info().or_fault("the device's memory")?;
        Ok(MemoryInfo { free, total })
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.core.enter()?;
        let mut at = 0;
        // SAFETY: the pointer is to a live integer.
        let answer = unsafe { sys::cuMemAlloc_v2(&mut at, bytes.max(1)) };
        if answer == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let expected = format!("{bytes} bytes free; choose a smaller batch or size, or end its other users");
            let free = self.memory().map_or("fewer".into(), |memory| memory.free.to_string());
            return Err(Error::device(format!("memory of {}", self.info.name), expected, free));
        }
        answer.or_fault("allocating device memory")?;
        self.allocations.borrow_mut().insert(at, bytes);
        Ok(at)
    }

    fn free(&self, at: u64) {
        let known = self.allocations.borrow_mut().remove(&at);
        assert!(known.is_some(), "freed {at:#x}, which is not allocated");
        if self.core.enter().is_ok() {
            // SAFETY: it was allocated and not freed; the driver waits for the work that uses it. A lost device has
            // lost its memory too, so a failure leaves nothing to do.
            unsafe { sys::cuMemFree_v2(at) };
        }
    }

    fn load(&self, name: &str, ptx: &str) -> Result<Module> {
        let loaded = Loaded::of(&self.core.context, &self.info, name, ptx)?;
        self.modules.borrow_mut().push(loaded.clone());
        Ok(Module(loaded))
    }

    fn load_all(&self, texts: &[(&str, &str)]) -> Result<Vec<Module>> {
        let loaded = Loaded::all(&self.core.context, &self.info, texts)?;
        self.modules.borrow_mut().extend_from_slice(&loaded);
        Ok(loaded.into_iter().map(Module).collect())
    }

    fn function(&self, module: &Module, name: &str, dynamic_shared: usize) -> Result<Function> {
        self.core.enter()?;
        let context = module.0.context.as_raw();
        self.check_owner(name, context)?;
        let args = args_bytes(&module.0.ptx, name)?;
        if dynamic_shared > self.most_shared {
            let expected = format!("at most {} bytes of shared memory, as the device has", self.most_shared);
            return Err(Error::device(format!("kernel {name}"), expected, dynamic_shared));
        }
        let raw = module.0.function(name, dynamic_shared)?;
        let mut names = self.names.borrow_mut();
        names.push(name.into());
        Ok(Function { raw, context, name: names.len() - 1, args, dynamic_shared })
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.check_range("copy to the device", to, from.len())?;
        self.core.enter()?;
        self.small.borrow_mut().send(&self.core.stream, to, from)
    }

    fn upload_weights(&self, to: u64, from: &[u8]) -> Result<()> {
        self.check_range("weights", to, from.len())?;
        self.core.enter()?;
        let left = match self.path.get() {
            WeightPath::Locked => staging::send_locked(&self.core.stream, to, from)?,
            WeightPath::Ring => from,
        };
        if left.is_empty() {
            return Ok(());
        }
        let to = to + (from.len() - left.len()) as u64;
        let mut ring = self.weights.borrow_mut();
        if ring.is_none() {
            *ring = Some(Ring::new(WEIGHT_RING.0, WEIGHT_RING.1)?);
        }
        ring.as_mut().expect("made above").send(&self.core.stream, to, left)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.check_range("copy from the device", from, to.len())?;
        self.core.enter()?;
        if !to.is_empty() {
            let stream = self.core.stream.as_inner();
            // SAFETY: both ranges are live, checked above, and nothing touches `to` before the wait below.
            let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), stream) };
            // Waits also after a failure: the copy must not outlive the borrow.
            let waited = self.core.stream.synchronize();
            answer.or_fault("copy from the device")?;
            waited.or_fault("copy from the device")?;
        }
        Ok(())
    }

    fn fill(&self, at: u64, byte: u8, bytes: usize) -> Result<()> {
        self.check_range("filling device memory", at, bytes)?;
        self.core.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is allocated, checked above.
        unsafe { sys::cuMemsetD8Async(at, byte, bytes, self.core.stream.as_inner()) }.or_fault("filling device memory")
    }

    unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: u32,
        dynamic_shared: usize,
        args: &[u8],
    ) -> Result<()> {
        let name = || format!("kernel {}", self.names.borrow()[function.name]);
        self.check_owner("launch", function.context)?;
        if args.len() != function.args {
            return Err(Error::device(name(), format!("{} bytes of arguments", function.args), args.len()));
        }
        if dynamic_shared > function.dynamic_shared {
            let expected = format!("at most {} bytes of shared memory, as prepared", function.dynamic_shared);
            return Err(Error::device(name(), expected, dynamic_shared));
        }
        self.core.enter()?;
        let mut params = [args.as_ptr() as *mut _];
        // SAFETY: the function is of a module that this device keeps; its one parameter has the size of `args`, which
        // the driver copies before it returns. What the kernel reaches through them is sound, as the caller promises.
        let answer = unsafe {
            sys::cuLaunchKernel(
                function.raw,
                grid[0],
                grid[1],
                grid[2],
                block,
                1,
                1,
                dynamic_shared as u32,
                self.core.stream.as_inner(),
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        if answer == CUresult::CUDA_SUCCESS { Ok(()) } else { answer.or_fault(name()) }
    }

    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.core.enter()?;
        let mut graph = Graph::record(&self.core, body)?;
        graph.modules.clone_from(&self.modules.borrow());
        Ok(graph)
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        self.check_owner("graph", graph.core.context.as_raw())?;
        self.core.enter()?;
        graph.run()
    }

    fn mark(&self) -> Result<Event> {
        self.mark_with(EventFlags::DISABLE_TIMING)
    }

    fn move_mark(&self, event: &Event) -> Result<()> {
        self.core.enter()?;
        event.inner.record(&self.core.stream).or_fault("marking the stream")
    }

    fn mark_time(&self) -> Result<Event> {
        self.mark_with(EventFlags::DEFAULT)
    }

    fn wait_for(&self, event: &Event) -> Result<()> {
        event.core.enter()?;
        event.inner.synchronize().or_fault("waiting for the device")
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<f64> {
        self.wait_for(to)?;
        let milliseconds = to.inner.elapsed_time_f32(&from.inner).or_fault("the time between two marks")?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn wait(&self) -> Result<()> {
        self.core.enter()?;
        self.core.stream.synchronize().or_fault("waiting for the device")
    }
}

impl Drop for Device {
    /// Waits for the queued work, which uses what is about to go, and gives all memory back.
    fn drop(&mut self) {
        let _ = self.wait();
        for &at in self.allocations.get_mut().keys() {
            // SAFETY: allocated, not freed, and no longer used.
            unsafe { sys::cuMemFree_v2(at) };
        }
    }
}
