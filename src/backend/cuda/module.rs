//! Modules and kernels, loaded when an op first needs them.

use super::driver::Driver;
use super::launch::Kernel;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The modules of this program that a device has loaded, and their kernels.
pub struct Kernels<D: Driver> {
    texts: &'static [(&'static str, &'static str)],
    modules: HashMap<&'static str, D::Module>,
    functions: HashMap<(Kernel, usize), D::Function>,
}

impl<D: Driver> Kernels<D> {
    /// Nothing loaded yet; `texts` are names and PTX, sorted by name.
    pub fn new(texts: &'static [(&'static str, &'static str)]) -> Self {
        Kernels { texts, modules: HashMap::new(), functions: HashMap::new() }
    }

    /// Loads these kernels, each with its bytes of dynamic shared memory; their modules side by side. Not to be done while
    /// work is captured.
    pub fn load(&mut self, driver: &D, wanted: &[(Kernel, usize)]) -> Result<()> {
        let mut texts = Vec::new();
        for (kernel, _) in wanted {
            let text = self.text(kernel.module)?;
            if !self.modules.contains_key(kernel.module) && !texts.contains(&text) {
                texts.push(text);
            }
        }
        let modules = driver.load_all(&texts)?;
        self.modules.extend(texts.into_iter().map(|(name, _)| name).zip(modules));
        wanted.iter().try_for_each(|&(kernel, shared)| self.function(driver, kernel, shared).map(|_| ()))
    }

    /// Name and text of a module.
    fn text(&self, module: &str) -> Result<(&'static str, &'static str)> {
        let found = self.texts.binary_search_by_key(&module, |(name, _)| name);
        found
            .map(|at| self.texts[at])
            .map_err(|_| Error::device(format!("module {module}"), "one of this program's", "none"))
    }

    /// The kernel `kernel` with `shared` bytes of dynamic shared memory, loaded if it was not. Loading compiles the
    /// module for the device, which may take a second; not to be done while work is captured.
    pub fn function(&mut self, driver: &D, kernel: Kernel, shared: usize) -> Result<D::Function> {
        if let Some(&function) = self.functions.get(&(kernel, shared)) {
            return Ok(function);
        }
        if !self.modules.contains_key(kernel.module) {
            let (name, text) = self.text(kernel.module)?;
            self.modules.insert(name, driver.load(name, text)?);
        }
        let function = driver.function(&self.modules[kernel.module], kernel.entry, shared)?;
        self.functions.insert((kernel, shared), function);
        Ok(function)
    }
}
