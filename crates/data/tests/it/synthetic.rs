//! Made-up samples: what addresses stand for, and those that cannot be.

use calotype_data::image::RgbImage;
use calotype_data::source::{SourceKind, open};
use calotype_data::{OrderConfig, Source, SourceOptions};

fn source(spec: &str) -> std::sync::Arc<dyn Source> {
    open(spec, &SourceOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn samples_are_functions_of_the_address_and_their_number() {
    let spec = "synthetic://1000/bmp=bmp:3x5/npy=array:float32:8,4,4/txt=words:12/cls=class:10";
    let (one, again) = (source(spec), source(spec));
    assert_eq!((one.len(), one.name(), one.digest()), (1000, spec.to_owned(), again.digest()));
    for i in [0, 1, 999] {
        let (sample, other) = (one.get(i).unwrap().into_sample(), again.get(i).unwrap().into_sample());
        assert_eq!(sample, other);
        let image = RgbImage::decode(&sample.key, &sample.parts["bmp"]).unwrap();
        assert_eq!((image.width(), image.height()), (5, 3));
        let array = sample.array("npy").unwrap();
        assert_eq!(array.shape(), [8, 4, 4]);
        let values = array.to_f32().unwrap();
        let mean = values.iter().sum::<f32>() / 128.0;
        assert!(mean.abs() < 0.5 && values.iter().any(|value| value.abs() > 1.0), "{mean}");
        let text = sample.text("txt").unwrap();
        assert_eq!(text.split(' ').count(), 12);
        assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_lowercase()), "{text}");
        assert!(sample.text("cls").unwrap().parse::<u32>().unwrap() < 10);
    }
    assert_ne!(one.get(0).unwrap().into_sample().parts, one.get(1).unwrap().into_sample().parts);
    let other = source(&format!("{spec}/seed=7"));
    assert_ne!(one.get(0).unwrap().into_sample(), other.get(0).unwrap().into_sample());
    assert_ne!(one.digest(), other.digest());
    assert!(one.get(1000).is_err() && one.meta().is_empty());
    assert_eq!(one.order(&OrderConfig { seed: 1, ..OrderConfig::default() }).unwrap().samples(), 1000);
}

#[test]
fn addresses_that_cannot_be_are_explained() {
    for (spec, part) in [
        ("synthetic://", "number of samples `` is no whole number"),
        ("synthetic://0/txt=words:1", "number of samples `0`"),
        ("synthetic://-3/txt=words:1", "number of samples `-3`"),
        ("synthetic://+3/txt=words:1", "number of samples `+3`"),
        ("synthetic://99999999999999999999999/txt=words:1", "is no whole number from 1 to"),
        ("synthetic://10", "names no parts"),
        ("synthetic://10/seed=1", "names no parts"),
        ("synthetic://10/txt", "has no `=`"),
        ("synthetic://10//txt=words:1", "segment `` has no `=`"),
        ("synthetic://10/txt=words", "the number of words of `txt` `` is no whole number"),
        ("synthetic://10/txt=word:3", "`word` is no kind of part"),
        ("synthetic://10/txt=words:", "the number of words of `txt` `` is no whole number"),
        ("synthetic://10/txt=words:1/txt=words:2", "`txt` stands there twice"),
        ("synthetic://10/=words:1", "`` is no extension"),
        ("synthetic://10/.npy=array:float32:1", "is no extension"),
        ("synthetic://10/a b=array:float32:1", "is no extension"),
        ("synthetic://10/npy=array:float32:8,0", "a length of `npy` `0`"),
        ("synthetic://10/npy=array:float32:8,", "a length of `npy` ``"),
        ("synthetic://10/npy=array:float32:65536,65536,65536,65536", "more than"),
        ("synthetic://10/npy=array:float32:1,1,1,1,1,1,1,1,1", "has 9 axes"),
        ("synthetic://10/npy=array:int64:3", "arrays are float32"),
        ("synthetic://10/npy=array", "arrays are float32"),
        ("synthetic://10/bmp=bmp:512", "HEIGHTxWIDTH"),
        ("synthetic://10/bmp=bmp:99999x1", "a length of `bmp` `99999`"),
        ("synthetic://10/txt=words:1/seed=x", "seed `x`"),
    ] {
        let error = open(spec, &SourceOptions::default()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(spec) && error.contains(part), "{spec}: {error}");
    }
    let options = SourceOptions { kind: Some(SourceKind::Mds), ..SourceOptions::default() };
    let error = open("synthetic://10/txt=words:1", &options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("leave the kind out"), "{error}");
}
