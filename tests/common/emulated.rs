//! A driver that runs kernels in the PTX emulator.

use aquatint::raw::backend::cuda::driver::{Driver, MemoryInfo, args_bytes};
use aquatint::{Error, Result};
use ptx_emulator::{Launch, Memory, Module, Stats, TensorCores};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

/// A device of the emulator. Faults of kernels are errors of the launch that commits them.
pub struct Emulated {
    memory: RefCell<Memory>,
    /// Kernels by the numbers that [`Driver::Function`] is.
    functions: RefCell<Vec<(Arc<Module>, String)>>,
    /// What was launched since capturing began.
    captured: RefCell<Option<Vec<Recorded>>>,
    /// Seed of the order in which blocks and warps run.
    seed: Cell<u64>,
    cores: TensorCores,
    /// Number of launches by kernel.
    pub launches: RefCell<BTreeMap<String, usize>>,
    /// Number of allocations.
    pub allocations: Cell<usize>,
    /// Bytes of weights that were copied to it.
    pub uploaded: Cell<usize>,
    /// What the last launch of each kernel did.
    pub stats: RefCell<BTreeMap<String, Stats>>,
    /// Bytes it pretends to have.
    total: usize,
    /// Launches after which it pretends to be lost.
    lives: Cell<usize>,
}

/// A launch of a captured step.
pub struct Recorded {
    function: usize,
    grid: [u32; 3],
    block: u32,
    shared: usize,
    args: Vec<u8>,
}

impl Emulated {
    /// A device whose blocks and warps run in an order that `seed` decides; tensor cores are Hopper's if it is even, else
    /// Ampere's, whose sums are the worse ones.
    pub fn new(seed: u64) -> Self {
        Self::with_memory(seed, 1 << 32)
    }

    /// A device with `total` bytes of memory.
    pub fn with_memory(seed: u64, total: usize) -> Self {
        Emulated {
            memory: RefCell::new(Memory::new()),
            functions: RefCell::default(),
            captured: RefCell::default(),
            seed: Cell::new(seed),
            cores: if seed.is_multiple_of(2) { TensorCores::Hopper } else { TensorCores::Ampere },
            launches: RefCell::default(),
            allocations: Cell::default(),
            uploaded: Cell::default(),
            stats: RefCell::default(),
            total,
            lives: Cell::new(usize::MAX),
        }
    }

    /// A device that is lost after `launches` kernels.
    pub fn lost_after(seed: u64, launches: usize) -> Self {
        let device = Self::new(seed);
        device.lives.set(launches);
        device
    }

    /// Bytes that are allocated.
    pub fn in_use(&self) -> usize {
        self.memory.borrow().bytes_in_use()
    }

    /// Most bytes ever allocated at a time.
    pub fn peak(&self) -> usize {
        self.memory.borrow().peak()
    }

    fn run(&self, launch: &Recorded) -> Result<()> {
        let Some(left) = self.lives.get().checked_sub(1) else {
            return Err(Error::device("emulated device", "an answer", "none: it is lost"));
        };
        self.lives.set(left);
        let functions = self.functions.borrow();
        let (module, entry) = &functions[launch.function];
        *self.launches.borrow_mut().entry(entry.clone()).or_default() += 1;
        let seed = self.seed.replace(self.seed.get().wrapping_mul(6364136223846793005).wrapping_add(1));
        let launched = module.launch(
            &mut self.memory.borrow_mut(),
            &Launch {
                entry,
                grid: launch.grid,
                block: [launch.block, 1, 1],
                dynamic_shared: launch.shared as u32,
                params: &launch.args,
                seed,
            },
        );
        let stats = launched.map_err(|fault| Error::device(entry.clone(), "a sound kernel", fault))?;
        self.stats.borrow_mut().insert(entry.clone(), stats);
        Ok(())
    }
}

/// Modules by name and tensor cores, parsed once per process.
type Parsed = HashMap<(String, TensorCores), Arc<Module>>;

fn parsed(name: &str, ptx: &str, cores: TensorCores) -> Result<Arc<Module>> {
    static MODULES: OnceLock<Mutex<Parsed>> = OnceLock::new();
    let mut modules = MODULES.get_or_init(Mutex::default).lock().unwrap();
    if let Some(module) = modules.get(&(name.to_owned(), cores)) {
        return Ok(module.clone());
    }
    let mut module = Module::parse(ptx).map_err(|e| Error::device(format!("module {name}"), "known PTX", e))?;
    module.set_tensor_cores(cores);
    Ok(modules.entry((name.into(), cores)).or_insert(Arc::new(module)).clone())
}

impl Driver for Emulated {
    type Module = (Arc<Module>, String);
    type Function = usize;
    type Graph = Vec<Recorded>;
    /// How many kernels had run.
    type Event = Cell<usize>;

    fn name(&self) -> String {
        "emulator".into()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: self.total - self.memory.borrow().bytes_in_use(), total: self.total })
    }

    fn processors(&self) -> usize {
        1
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let free = self.memory()?.free;
        if bytes > free {
            return Err(Error::device("device memory", format!("{bytes} bytes"), format!("{free} free")));
        }
        self.allocations.set(self.allocations.get() + 1);
        Ok(self.memory.borrow_mut().alloc(bytes))
    }

    fn free(&self, at: u64) {
        self.memory.borrow_mut().free(at).expect("the address of an allocation");
    }

    fn load(&self, name: &str, ptx: &str) -> Result<Self::Module> {
        assert!(self.captured.borrow().is_none(), "modules must not be loaded while work is captured");
        Ok((parsed(name, ptx, self.cores)?, ptx.into()))
    }

    fn function(&self, (module, ptx): &Self::Module, name: &str, _: usize) -> Result<usize> {
        args_bytes(ptx, name)?;
        self.functions.borrow_mut().push((module.clone(), name.into()));
        Ok(self.functions.borrow().len() - 1)
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        assert!(self.captured.borrow().is_none(), "copies must not be captured");
        self.memory.borrow_mut().write(to, from).map_err(|e| Error::device("upload", "device memory", e))
    }

    fn upload_weights(&self, to: u64, from: &[u8]) -> Result<()> {
        self.uploaded.set(self.uploaded.get() + from.len());
        self.upload(to, from)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.memory.borrow_mut().read(from, to).map_err(|e| Error::device("download", "device memory", e))
    }

    fn fill(&self, at: u64, byte: u8, bytes: usize) -> Result<()> {
        self.upload(at, &vec![byte; bytes])
    }

    #[allow(unsafe_code)] // Nothing here is: the emulator checks every address.
    unsafe fn launch(&self, function: usize, grid: [u32; 3], block: u32, shared: usize, args: &[u8]) -> Result<()> {
        let launch = Recorded { function, grid, block, shared, args: args.to_vec() };
        if let Some(captured) = &mut *self.captured.borrow_mut() {
            captured.push(launch);
            return Ok(());
        }
        self.run(&launch)
    }

    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Vec<Recorded>> {
        *self.captured.borrow_mut() = Some(Vec::new());
        let done = body();
        let captured = self.captured.borrow_mut().take().unwrap_or_default();
        done.map(|()| captured)
    }

    fn replay(&self, graph: &Vec<Recorded>) -> Result<()> {
        graph.iter().try_for_each(|launch| self.run(launch))
    }

    fn mark(&self) -> Result<Cell<usize>> {
        Ok(Cell::new(self.launches.borrow().values().sum()))
    }

    fn move_mark(&self, event: &Cell<usize>) -> Result<()> {
        event.set(self.mark()?.get());
        Ok(())
    }

    fn mark_time(&self) -> Result<Cell<usize>> {
        self.mark()
    }

    fn wait_for(&self, _: &Cell<usize>) -> Result<()> {
        Ok(())
    }

    /// A kernel takes a second.
    fn elapsed(&self, from: &Cell<usize>, to: &Cell<usize>) -> Result<f64> {
        Ok((to.get() - from.get()) as f64)
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
