//! The float model: packed as f32 beside the output, or a packed file that is all f32 already.

use super::Settings;
use crate::emit::{Options, Packing, Progress};
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::format::{MAGIC, Packed, TensorKind};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::Role;
use aquatint::raw::whole_file::WholeDirectory;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A packed file of floats.
pub struct FloatModel {
    /// The file.
    pub packed: Packed<FileBytes>,
    /// Where it is, if it was made for this; removed with it.
    _folder: Option<WholeDirectory>,
}

impl FloatModel {
    /// Opens or packs the model of `settings`; tells `progress` about each weight before it is packed.
    ///
    /// # Errors
    /// Those of packing; [`Error::Request`] if a packed file holds anything but f32.
    pub fn open(settings: &Settings, progress: &mut dyn FnMut(Progress)) -> Result<Self> {
        Self::open_after(settings, &|_| Ok(()), progress)
    }

    /// [`open`](Self::open), of a model that is no packed file with what `prepare` makes of it before it is packed.
    ///
    /// # Errors
    /// As there; those of `prepare`.
    pub fn open_after(
        settings: &Settings,
        prepare: &dyn Fn(&mut Packing) -> Result<()>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        if is_packed(&settings.model) {
            let packed = Packed::open(&settings.model)?;
            check(&packed, &settings.model)?;
            return Ok(FloatModel { packed, _folder: None });
        }
        let mut name = settings.output.file_name().unwrap_or_default().to_owned();
        name.push(".f32");
        let folder = WholeDirectory::create(&settings.output.with_file_name(name))?;
        let options = Options {
            model: settings.model.clone(),
            refiner: settings.refiner.clone(),
            donors: settings.donors.clone(),
            overrules: settings.overrules.clone(),
            q_config: Some("f32".into()),
            output: folder.temporary().join("model.aqt"),
            ..Options::default()
        };
        let mut packing = Packing::open(&options)?;
        prepare(&mut packing)?;
        packing.write(progress)?;
        Ok(FloatModel { packed: Packed::open(&options.output)?, _folder: Some(folder) })
    }
}

/// Whether the file at `path` begins as packed files do.
fn is_packed(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}

/// Refuses a packed file whose denoisers or text encoders are not all f32.
fn check(packed: &Packed<FileBytes>, path: &Path) -> Result<()> {
    let runs = packed.programs().iter().filter(|p| !matches!(p.role, Role::VaeDecoder | Role::VaeEncoder));
    for tensor in runs.flat_map(|p| &p.nodes).flat_map(|node| node.op.tensors()) {
        let info = &packed.tensors()[tensor.0 as usize];
        if info.kind != TensorKind::F32 {
            let expected = "f32 throughout, as --q-config f32 packs it, or the model that it was packed from";
            return Err(Error::request(
                format!("{}: {}", path.display(), info.name),
                expected,
                format!("{:?}", info.kind),
            )
            .into());
        }
    }
    Ok(())
}
