#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};

use super::annotator::Arch;
use super::*;
use crate::model::{BatchNormOptions, build};

#[test]
fn shards_are_all_samples_once() {
    for (count, samples) in [(1, 10), (3, 10), (4, 3), (3, 0)] {
        let mut all: Vec<u32> = (0..count)
            .flat_map(|index| format!("{index}/{count}").parse::<Shard>().unwrap().of(samples))
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..samples as u32).collect::<Vec<_>>(), "{count} shards");
    }
    for wrong in ["", "1", "4/4", "-1/4", "0/0", "a/b", "1/2/3"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}

#[test]
fn an_annotator_is_a_network_or_a_script() {
    assert_eq!("resnet50".parse(), Ok(Arch::Network("resnet50".into())));
    assert_eq!("script:a/b.pt".parse(), Ok(Arch::Script("a/b.pt".into())));
    assert!("script:".parse::<Arch>().is_err());
}

/// The identity that label maps rest on: pooling and the linear layer can change places.
#[test]
fn the_mean_over_the_cells_is_what_the_classifier_says() {
    for arch in ["resnet18", "resnet50"] {
        let model = build(arch, 7, BatchNormOptions::default(), Device::Cpu, 3).unwrap();
        let x = crate::model::seeded(4, || Tensor::randn([2, 3, 64, 96], (Kind::Float, Device::Cpu)));
        tch::no_grad(|| {
            let (weight, bias) = model.head().unwrap();
            let features = model.features(&x).unwrap();
            assert_eq!(features.size()[2..], [2, 3], "{arch}: a cell is 32 pixels, height first");
            let scores = features.conv2d(&weight, Some(&bias), [1, 1], [0, 0], [1, 1], 1);
            let mean = scores.mean_dim([2, 3].as_slice(), false, Kind::Float);
            let apart = (mean - model.forward(&x, false).unwrap()).abs().max().double_value(&[]);
            assert!(apart < 1e-4, "{arch}: {apart}");
        });
    }
}
