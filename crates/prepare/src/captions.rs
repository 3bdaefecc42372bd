//! What is said of images without captions.

/// Extensions of images' parts.
const IMAGES: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
/// Extensions of captions' parts.
const CAPTIONS: [&str; 3] = ["txt", "text", "caption"];

/// Counts images and captions among samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CaptionCount {
    /// Samples with an image.
    pub images: u64,
    /// Those of them with a caption.
    pub captioned: u64,
    /// Those of them with a class.
    pub classes: u64,
    /// Samples with a caption of nothing but spaces.
    pub empty: u64,
}

/// Whether a part of this name is a caption.
pub(crate) fn is_caption(part: &str) -> bool {
    CAPTIONS.contains(&part)
}

impl CaptionCount {
    /// Adds `count` samples of these parts.
    pub(crate) fn add<'p>(&mut self, parts: impl Iterator<Item = &'p str> + Clone, count: u64) {
        let has = |known: &[&str]| parts.clone().any(|part| known.contains(&part));
        if has(&IMAGES) {
            self.images += count;
            self.captioned += if has(&CAPTIONS) { count } else { 0 };
            self.classes += if has(&["cls"]) { count } else { 0 };
        }
    }

    /// What the user should read of captions that are missing or empty.
    pub(crate) fn notes(&self) -> Vec<String> {
        let empty = (self.empty > 0).then(|| {
            let [empty, a_picture, them] = match self.empty {
                1 => ["caption is empty", "a picture", "it"],
                _ => ["captions are empty", "pictures", "them"],
            };
            format!(
                "{} {empty}, which training takes for {a_picture} without words; `calotype data check` names {them}, and with \
                 --quarantine has training leave {them} out",
                self.empty
            )
        });
        self.missing().into_iter().chain(empty).collect()
    }

    /// That of captions that are missing.
    fn missing(&self) -> Option<String> {
        let missing = self.images - self.captioned;
        if missing == 0 {
            return None;
        }
        let which = match (self.captioned, self.images, missing) {
            (0, 1, _) => "the image has no caption".to_owned(),
            (0, images, _) => format!("none of the {images} images has a caption"),
            (_, images, 1) => format!("1 of {images} images has no caption"),
            (_, images, missing) => format!("{missing} of {images} images have no caption"),
        };
        let classes = if self.classes > 0 { "data.caption=\"a photo of {class}\" or " } else { "" };
        Some(format!(
            "{which} (a part txt), which CLIP, text encoders and text-to-image training need; captions come from files beside the \
             images (a.png and a.txt), metadata.jsonl, metadata.csv or --caption-column, or in training from names: \
             {classes}data.caption=\"{{file}}\""
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_captions_are_counted() {
        let mut count = CaptionCount::default();
        count.add(["npy", "json"].into_iter(), 9);
        assert!(count.notes().is_empty(), "no images");
        count.add(["png", "txt"].into_iter(), 3);
        assert!(count.notes().is_empty());
        count.add(["jpg", "json"].into_iter(), 2);
        assert!(count.notes()[0].starts_with("2 of 5 images have no caption"));
        let mut classes = CaptionCount::default();
        classes.add(["jpg", "cls"].into_iter(), 4);
        let note = &classes.notes()[0];
        assert!(note.starts_with("none of the 4 images") && note.contains("a photo of {class}"), "{note}");
        let empty = CaptionCount { empty: 2, ..CaptionCount::default() }.notes();
        assert!(empty.len() == 1 && empty[0].starts_with("2 captions are empty"), "{empty:?}");
        let one = CaptionCount { empty: 1, ..CaptionCount::default() }.notes();
        assert!(one[0].starts_with("1 caption is empty, which training takes for a picture without words"), "{one:?}");
    }
}
