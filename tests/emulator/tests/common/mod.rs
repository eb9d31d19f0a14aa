//! What the tests share: typed buffers on the emulated device and parameter blocks.
#![allow(dead_code)]

use ptx_emulator::{Fault, FaultKind, Launch, Memory, Module, Stats};

/// Little-endian bytes of a slice.
pub trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}

macro_rules! bytes {
    ($($ty:ty),*) => {
        $(impl Bytes for [$ty] {
            fn bytes(&self) -> Vec<u8> {
                self.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
        })*
    };
}
bytes!(u8, i8, u16, i32, u32, f32, u64, f64);

/// Allocates and fills a buffer.
pub fn upload<T>(memory: &mut Memory, values: &[T]) -> u64
where
    [T]: Bytes,
{
    let bytes = values.bytes();
    let address = memory.alloc(bytes.len());
    memory.write(address, &bytes).unwrap();
    address
}

pub fn download<const N: usize, T>(memory: &Memory, at: u64, count: usize, from: fn([u8; N]) -> T) -> Vec<T> {
    let mut bytes = vec![0; count * N];
    memory.read(at, &mut bytes).unwrap();
    bytes.chunks_exact(N).map(|chunk| from(chunk.try_into().unwrap())).collect()
}

/// Builds a parameter block of 8-byte and 4-byte values.
#[derive(Default)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn pointer(mut self, value: u64) -> Params {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn word(mut self, value: u32) -> Params {
        self.0.extend(value.to_le_bytes());
        self
    }
}

pub fn parse(text: &str) -> Module {
    Module::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

pub fn launch(module: &Module, memory: &mut Memory, entry: &str, grid: u32, block: u32, params: &[u8]) -> Stats {
    let launch = Launch { entry, grid: [grid, 1, 1], block: [block, 1, 1], dynamic_shared: 0, params, seed: 1 };
    module.launch(memory, &launch).unwrap_or_else(|fault| panic!("{fault}"))
}

/// Wraps a body into a module with one entry `k`, whose one parameter is the pointer `%out`. Declares registers
/// `%r`, `%rd`, `%rs`, `%f`, `%fd`, `%p`, and `%tid`'s index as `%r0`.
pub fn kernel(body: &str) -> String {
    kernel_with("", body)
}

/// The same, with module-scope declarations before.
pub fn kernel_with(declarations: &str, body: &str) -> String {
    format!(
        ".version 7.4\n.target sm_80\n.address_size 64\n{declarations}\n\
         .visible .entry k(.param .align 8 .b8 k_param_0[8])\n{{\n\
         .reg .b16 %rs<32>; .reg .b32 %r<64>; .reg .f32 %f<32>; .reg .b64 %rd<32>; .reg .f64 %fd<32>; .reg .pred %p<16>;\n\
         .reg .b64 %out;\n\
         ld.param.u64 %out, [k_param_0];\ncvta.to.global.u64 %out, %out;\nmov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// Runs a kernel text over one or more blocks with `out` bytes of zeroed output.
pub fn run_text(text: &str, grid: u32, block: u32, out: usize, seed: u64) -> Result<Vec<u8>, Fault> {
    let mut module = parse(text);
    module.set_budget(1 << 22);
    let mut memory = Memory::new();
    let address = memory.alloc(out);
    memory.fill(address, out, 0).unwrap();
    let launch = Launch {
        entry: "k",
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        dynamic_shared: 0,
        params: &address.to_le_bytes(),
        seed,
    };
    module.launch(&mut memory, &launch)?;
    let mut bytes = vec![0; out];
    memory.read(address, &mut bytes).unwrap();
    Ok(bytes)
}

/// Runs a body in one block and reads the output as words.
pub fn words(body: &str, block: u32, count: usize) -> Vec<u32> {
    let bytes = run_text(&kernel(body), 1, block, count * 4, 1).unwrap_or_else(|fault| panic!("{fault}\n{body}"));
    bytes.chunks_exact(4).map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

/// Runs a kernel with several seeds and expects the same fault every time.
pub fn expect_fault(text: &str, grid: u32, block: u32, kind: FaultKind) {
    for seed in 0..8 {
        match run_text(text, grid, block, 4096, seed) {
            Ok(_) => panic!("seed {seed}: no fault, {kind:?} expected\n{text}"),
            Err(fault) => assert_eq!(fault.kind, kind, "seed {seed}: {fault}"),
        }
    }
}

/// Runs a kernel with several seeds and expects no fault.
pub fn expect_clean(text: &str, grid: u32, block: u32) {
    for seed in 0..8 {
        if let Err(fault) = run_text(text, grid, block, 4096, seed) {
            panic!("seed {seed}: {fault}\n{text}");
        }
    }
}
