//! `aquatint merge`.

use super::options::TEXT;
use super::{say, say_json};
use aquatint::image::{Image, write_png};
use aquatint::raw::whole_file::{self, WholeDirectory, check_target};
use aquatint::samples::{Merge, SampleFile, Statistics, Tensor};
use aquatint::{Error, Result};
use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file in a folder of pictures that tells of what job they are; it is written last.
const TOLD: &str = "merged.json";
/// Fewest digits of a picture's number in its name.
const DIGITS: usize = 6;

/// Put the parts that sample made together.
///
/// All shards must be there, sound, of one job and, unless it is allowed otherwise, of one kind of processor. What is written
/// does not depend on how the images were divided.
#[derive(Args)]
pub struct MergeArgs {
    /// The folder of the shards
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// A folder for pictures, 000000.png and so on, each with the text that tells how it was made; or a file by its ending:
    /// .npz with the array arr_0 [n,h,w,c] of bytes, or .safetensors with everything
    #[arg(short, long, alias = "outdir", value_name = "OUT")]
    output: PathBuf,
    /// Take shards of different devices or instruction sets, whose images differ in roundings
    #[arg(long)]
    allow_mixed_isa: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl MergeArgs {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let ending = self.output.extension().map(|ending| ending.to_ascii_lowercase());
        let ending = ending.as_ref().and_then(|ending| ending.to_str()).unwrap_or_default();
        if ["npz", "safetensors"].contains(&ending) {
            check_target(&self.output, &[&self.folder])?;
        }
        let merge = Merge::open(&self.folder, self.allow_mixed_isa)?;
        let told = told(&merge, merge.statistics()?.as_ref())?;
        let already = match ending {
            "npz" => merge.write_npz(&self.output).map(|()| false)?,
            "safetensors" => merge.write_samples(&self.output).map(|()| false)?,
            _ => self.write_pictures(&merge, &told)?,
        };
        self.report(&merge, told, already);
        Ok(())
    }

    /// Writes a folder of pictures, unless it is there; gives whether it was.
    fn write_pictures(&self, merge: &Merge, told: &Value) -> Result<bool> {
        if !merge.has_pictures() {
            let expected = "a name that ends in .safetensors, since the shards hold latents alone";
            return Err(Error::request(format!("output {}", self.output.display()), expected, "a folder of pictures"));
        }
        let text = format!("{told:#}\n");
        if fs::read(self.output.join(TOLD)).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(true);
        }
        let folder = WholeDirectory::create(&self.output)?;
        let digits = merge.images().saturating_sub(1).to_string().len().max(DIGITS);
        for file in merge.files() {
            write_file(&file?, folder.temporary(), digits)?;
        }
        whole_file::write(&folder.temporary().join(TOLD), |file| file.write_all(text.as_bytes()))?;
        folder.commit()?;
        Ok(false)
    }

    /// Says what was done.
    fn report(&self, merge: &Merge, mut told: Value, already: bool) {
        if self.json {
            told["output"] = json!(self.output);
            told["shards"] = json!(merge.shards());
            told["already"] = json!(already);
            return say_json(&told);
        }
        if self.quiet {
            return;
        }
        let flat = told["flat"].as_array().map_or(0, Vec::len);
        let flat = if flat == 0 { String::new() } else { format!(", {flat} of one colour only") };
        let before = if already { ", which was done before" } else { "" };
        let (images, shards, devices) = (merge.images(), merge.shards(), merge.devices().join(" and "));
        say(format_args!(
            "{images} images of {shards} shard{} by {devices}{flat}: {}{before}",
            if shards == 1 { "" } else { "s" },
            self.output.display(),
        ));
    }
}

/// What there is to tell of a job and its pictures.
fn told(merge: &Merge, statistics: Option<&Statistics>) -> Result<Value> {
    let settings: serde_json::Map<String, Value> =
        merge.settings().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut told = json!({
        "job": merge.id()?,
        "images": merge.images(),
        "devices": merge.devices(),
        "settings": settings,
    });
    if let Some(statistics) = statistics {
        told["mean"] = json!(statistics.mean());
        told["covariance"] = json!(statistics.covariance());
        told["flat"] = json!(statistics.flat());
    }
    Ok(told)
}

/// Writes the pictures of a shard into `folder`.
fn write_file(file: &SampleFile, folder: &Path, digits: usize) -> Result<()> {
    let Some(dims) = file.image_dims() else { return Ok(()) };
    let (frames, [h, w, c]) = match dims[..] {
        [h, w, c] => (1, [h, w, c]),
        [f, h, w, c] => (f, [h, w, c]),
        _ => unreachable!("opened with three or four"),
    };
    let (texts, len) = (file.texts()?, h * w * c);
    let pictures = file.bytes(Tensor::Images).par_chunks_exact(len).enumerate();
    pictures.try_for_each(|(k, bytes)| {
        let (image, frame) = (file.range().start + k / frames, k % frames);
        let name = match dims.len() {
            3 => format!("{image:0digits$}.png"),
            _ => format!("{image:0digits$}-{frame:03}.png"),
        };
        let picture = Image::new(w as u32, h as u32, c, bytes.to_vec());
        write_png(folder.join(name), &picture, &[(TEXT, &texts[k / frames])])
    })
}
