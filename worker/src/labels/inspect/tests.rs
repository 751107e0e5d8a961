#![allow(clippy::unwrap_used)]

use super::canvas::Rgb;
use super::*;

/// A map whose top half is class 1 and whose bottom half is class 2.
fn halves() -> Source {
    let (height, width) = (4, 6);
    let classes = (0..height * width).map(|cell| if cell < height * width / 2 { 1 } else { 2 }).collect();
    let map = LabelMap { k: 1, height, width, logits: vec![9.0; height * width], classes };
    Source { map, dtype: "float32".into(), format: "zip".into() }
}

fn target(source: &Source, axes: Axes, classes: &Classes) -> Target {
    let crop = UnitBox { x1: 0.05, y1: 0.1, x2: 0.95, y2: 0.9 };
    let mut masses = vec![0.0; classes.len() as usize];
    pool(&source.map, crop, axes, &mut masses);
    Target { crop, axes, masses }
}

#[test]
fn the_two_panels_show_the_map_upright_and_transposed() {
    let source = halves();
    let classes = Classes::parse("10").unwrap();
    let targets = [Axes::Hw, Axes::Reference].map(|axes| target(&source, axes, &classes));
    let canvas = picture::draw("title", &source, &targets, &classes, None).unwrap();
    // Of the colours, class 1 has red and class 2 blue; panels are 480 wide, begin at 24, 528 and 1032, and at 112.
    let is_red = |[r, _, b]: Rgb| r > b;
    let at = |panel: u32, x: u32, y: u32| is_red(canvas.at(24 + 504 * panel + x, 112 + y));
    for (panel, [upper_left, upper_right, lower_left, lower_right]) in
        [(1, [true, true, false, false]), (2, [true, false, true, false])]
    {
        assert_eq!(at(panel, 60, 90), upper_left, "panel {panel}");
        assert_eq!(at(panel, 420, 90), upper_right, "panel {panel}");
        assert_eq!(at(panel, 60, 400), lower_left, "panel {panel}");
        assert_eq!(at(panel, 420, 400), lower_right, "panel {panel}");
    }
}

#[test]
fn odd_shapes_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let classes = Classes::parse("3").unwrap();
    let mut source = halves();
    for (width, height) in [(1, 1), (3, 400), (400, 3)] {
        let path = folder.path().join("image.png");
        let image = Location::File(path.clone());
        image::RgbImage::from_pixel(width, height, image::Rgb([9, 200, 30])).save(&path).unwrap();
        let targets = [target(&source, Axes::Hw, &classes)];
        let canvas = picture::draw(&"long ".repeat(200), &source, &targets, &classes, Some(&image)).unwrap();
        let out = folder.path().join("out.png");
        canvas.save(&out).unwrap();
        assert!(image::open(&out).unwrap().width() > 900);
    }
    source.map.classes.fill(0);
    let targets = [target(&source, Axes::Hw, &classes)];
    let broken = folder.path().join("broken.jpg");
    std::fs::write(&broken, b"no image").unwrap();
    let error = picture::draw("", &source, &targets, &classes, Some(&Location::File(broken))).err().unwrap();
    assert!(format!("{error:#}").contains("broken.jpg: neither a JPEG nor a PNG"), "{error:#}");
}

#[test]
fn class_names_come_in_three_forms() {
    let folder = tempfile::tempdir().unwrap();
    let parse = |content: &str| {
        let path = folder.path().join("classes");
        std::fs::write(&path, content).unwrap();
        Classes::parse(path.to_str().unwrap())
    };
    for content in [
        r#"{"1": ["n02", "goldfish"], "0": ["n01", "tench"]}"#,
        r#"["tench", "goldfish"]"#,
        "tench\ngoldfish\n",
    ] {
        let classes = parse(content).unwrap();
        assert_eq!(classes.len(), 2);
        assert_eq!(
            [0, 1, 2].map(|class| classes.name(class)),
            [Some("tench".into()), Some("goldfish".into()), None]
        );
        assert_eq!(classes.label(1, 20), "1 goldfish");
        assert_eq!(classes.label(1, 8), "1 gold..");
    }
    for wrong in ["", "{}", "[1]", r#"{"0": "a", "2": "b"}"#, r#"{"x": "a"}"#] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(Classes::parse("0").is_err() && Classes::parse("no/such").is_err());
}
