//! Folders of pictures.

use aquatint::image::{Image, write_png};
use aquatint_evaluation::{Folder, Protocol, Scorer, evaluate_folders};
use std::path::{Path, PathBuf};

/// A folder for this run of the tests.
fn empty(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("folders-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// A folder of grey pictures, each of another brightness.
fn folder(name: &str, pictures: &[&str]) -> PathBuf {
    let folder = empty(name);
    for (i, name) in pictures.iter().enumerate() {
        write_png(folder.join(name), &Image::of_pixels(12, 12, 3, 40 * i as u8), &[]).expect("a picture");
    }
    folder
}

#[test]
fn pictures_come_in_the_order_of_numbers_in_their_names() {
    let names = [
        "10.png",
        "9.PNG",
        "a2b10.png",
        "a2b9.png",
        "a10.png",
        "07.png",
        "7.png",
        "b.webp",
        "100000000000000000000.jpg",
    ];
    let path = empty("order");
    // They are not read here.
    names.iter().for_each(|name| std::fs::write(path.join(name), "").expect("a file"));
    std::fs::write(path.join("notes.txt"), "no picture").expect("a file");
    std::fs::create_dir_all(path.join("8.png")).expect("a folder within");
    let names: Vec<String> = Folder::new(&path).expect("pictures").names().collect();
    let expected = [
        "07.png",
        "7.png",
        "9.PNG",
        "10.png",
        "100000000000000000000.jpg",
        "a2b9.png",
        "a2b10.png",
        "a10.png",
        "b.webp",
    ];
    assert_eq!(names, expected);
}

#[test]
fn pictures_of_one_name_are_compared() {
    let [a, b, c] =
        [("a", ["1.png", "2.png", "10.png"]), ("b", ["1.png", "2.png", "10.png"]), ("c", ["1.png", "2.png", "3.png"])]
            .map(|(name, pictures)| Folder::new(&folder(name, &pictures)).expect("pictures"));
    let compare = |folders: &[Folder]| {
        let mut last = (0, 0);
        let report =
            evaluate_folders(folders, &Protocol::default(), Scorer::default(), &mut |p| last = (p.done, p.total));
        assert_eq!(last.0, last.1, "all that was announced was done");
        report.expect("pictures")
    };
    let report = compare(&[a.clone(), b]);
    let figure = |name: &str| report.files[1].figures.iter().find(|(n, _)| *n == name).expect("a figure").1.value;
    assert_eq!((figure("psnr_median"), figure("ssim_median")), (f64::INFINITY, 1.0));
    assert!(report.files[0].figures.is_empty() && report.files[1].comparisons.len() == 1);
    let other = compare(&[a, c]);
    assert!(other.files[1].figures.is_empty() && other.files[1].comparisons.is_empty());
    assert_eq!(other.notes, ["names of pictures differ between folders: they are not compared one by one"]);
}
