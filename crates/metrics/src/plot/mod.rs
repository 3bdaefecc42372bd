//! Plots as SVG and PNG: no scripts, no font files, nothing fetched.
//!
//! [`LinePlot`] shows long noisy curves, such as a loss over samples; [`Chart`] shows measured points with labels, intervals,
//! references and targets, such as FID over CLIP score; [`Confusion`] what a classifier takes classes for. All become a [`Drawing`],
//! which is written as SVG (light or dark, by the reader's scheme) or as PNG (light). Colours are Okabe and Ito's ("Color Universal Design", 2008), which stay apart for
//! colour-blind readers, darkened or lightened for contrast; curves also differ in markers and dashes.

mod axes;
mod chart;
mod confusion;
mod drawing;
mod lettering;
mod line;
mod raster;

pub use chart::{Axis, Band, Chart, Curve, Point, Role, Target};
pub use confusion::Confusion;
pub use drawing::Drawing;
pub use line::{LinePlot, Series};

pub(crate) use drawing::escape;
