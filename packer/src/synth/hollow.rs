//! Every model of true size is written, opened and lowered, and a run of it planned, as hollow files: of the size that they say,
//! but only small tensors are there, since nothing before a weight is used reads the others.

use super::{MODELS, SynthModel};
use crate::error::Result;
use crate::lower::lower;
use crate::source::diffusers::Model;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use crate::weight::Weight;
use aquatint::raw::backend::args::Element;
use aquatint::raw::mmap;
use aquatint::raw::plan::{Binding, Rules, plan};
use aquatint::raw::program::shape::{TensorType, infer};
use aquatint::raw::program::{Dims, Role};
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// Tensors of more elements are not there.
const LARGE: usize = 1 << 16;

/// Writes the file as [`weights::write`](fn@crate::weights::write) does, with holes for large tensors.
fn write(
    file: &Path,
    tensors: &[(String, Vec<usize>)],
    values: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, dims)| {
        let start = end;
        end += 2 * dims.iter().product::<usize>();
        (name.clone(), TensorInfo { dtype: Dtype::F16, shape: dims.clone(), data_offsets: (start, end) })
    });
    let metadata = Metadata::new(None, infos.collect()).unwrap();
    let mut header = serde_json::to_vec(&metadata).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let begin = 8 + header.len() as u64;
    let mut out = File::create(file).unwrap();
    out.set_len(begin + end as u64).unwrap();
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(&header).unwrap();
    for (i, (name, dims)) in tensors.iter().enumerate() {
        if dims.iter().product::<usize>() <= LARGE {
            let halves: Vec<f16> = values(i)?.into_iter().map(f16::from_f32).collect();
            let at = metadata.info(name).unwrap().data_offsets.0 as u64;
            out.seek(SeekFrom::Start(begin + at)).unwrap();
            out.write_all(halves.as_bytes()).unwrap();
        }
    }
    Ok(())
}

/// A folder of hollow models.
struct Folder(PathBuf);

impl Folder {
    /// Writes the model called `name`, unless it is there.
    fn model(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        if !path.exists() {
            let (_, model): (_, SynthModel) = MODELS.into_iter().find(|(known, _)| *known == name).unwrap();
            model.write_with(&path, 1, &mut write).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn models_of_true_size_lower() {
    // Files are mapped then, not copied.
    mmap::guard(|_| std::process::exit(1)).unwrap();
    let folder = Folder(std::env::temp_dir().join(format!("aquatint-hollow-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    for (name, _) in MODELS {
        if name == "t5-xxl" {
            continue; // the text encoder of others
        }
        let path = folder.model(name);
        // What their authors publish elsewhere.
        let text = ["pixart-alpha-512", "pixart-sigma-1024", "opensora-16x512", "latte"].contains(&name);
        let donors = Donors {
            autoencoder: (name == "opensora-16x512").then(|| folder.model("sd15")),
            text: text.then(|| folder.model("t5-xxl")).into_iter().collect(),
            without_text: false,
        };
        let model = Model::open_with(&path, &donors, &Overrules::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let lowered = lower(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(lowered.programs[0].role, Role::Denoiser, "{name}");
        let encoders = lowered.pipeline.text.map_or(0, |text| text.encoders.len());
        println!("{name}: {} programs, {encoders} of them for texts", lowered.programs.len());

        let ty = |w: &Weight| TensorType { dims: w.dims(), integer: false, f32: true, codes: false, bytes: false };
        let types: Vec<_> = lowered.weights.iter().map(ty).collect();
        let [height, width] = lowered.pipeline.latent_size.map(|side| side as usize);
        let dims = Dims { height, width, frames: lowered.pipeline.frames as usize, tokens: 77, ..Dims::ONE };
        let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        for program in &lowered.programs {
            let role = program.role.name();
            infer(program, &types, &dims).unwrap_or_else(|e| panic!("{name}, {role}: {e}"));
            let rules = Rules { narrow: Element::F16, makes_codes: true, workspace: &|_| 0 };
            let plan = plan(program, &types, &binding, &rules);
            let plan = plan.unwrap_or_else(|e| panic!("{name}, {role}: {e}"));
            assert!(plan.arena > 0, "{name}, {role}");
        }
    }
}
