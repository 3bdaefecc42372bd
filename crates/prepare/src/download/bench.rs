//! The throughput of the stage against a server in the same process.

use std::path::Path;

use calotype_data::Control;
use calotype_data::emoji::{Split, write_dataset};
use calotype_data::image::{Filter, RgbImage};
use calotype_data::{Dataset, ShardLimits};
use clap::Parser;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{DownloadArgs, run};
use crate::{Account, Error, Result};

/// Different images that the server has.
const IMAGES: usize = 64;

/// Longest head of a request.
const LONGEST_HEAD: usize = 1 << 14;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: DownloadArgs,
}

/// Downloads `images` JPEG images of `pixels` x `pixels` from a server on the loopback interface into shards of
/// 1,000 in `folder`/shards, with further `options` of the stage's command line; without any, images are stored as
/// they come. The account's `seconds` are those of the stage alone.
///
/// # Errors
/// Those of the stage; [`Error::Usage`] for options that it does not know.
pub fn bench_download(folder: &Path, images: usize, pixels: usize, options: &[String]) -> Result<Account> {
    let files = jpegs(folder, pixels)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(Error::io("start a server for", folder))?;
    let listener =
        runtime.block_on(TcpListener::bind("127.0.0.1:0")).map_err(Error::io("start a server for", folder))?;
    let address = listener.local_addr().map_err(Error::io("start a server for", folder))?;
    let replies = std::sync::Arc::new(files.iter().map(|image| reply(image)).collect::<Vec<_>>());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, std::sync::Arc::clone(&replies)));
        }
    });
    let list = folder.join("list.txt");
    let lines: String = (0..images).map(|index| format!("http://{address}/{index}\n")).collect();
    std::fs::write(&list, lines).map_err(Error::io("write", &list))?;
    let account = download(&list, &folder.join("shards"), options);
    runtime.shutdown_background();
    account
}

fn download(list: &Path, out: &Path, options: &[String]) -> Result<Account> {
    let (list, out) = (list.display().to_string(), out.display().to_string());
    let fixed = ["bench", &list, &out, "--allow-private", "--number-sample-per-shard=1000", "--per-host=256"];
    let default = if options.is_empty() { Some("--resize-mode=no") } else { None };
    let words = fixed.into_iter().chain(default).chain(options.iter().map(String::as_str));
    let line = Line::try_parse_from(words).map_err(|e| Error::Usage(e.to_string()))?;
    run(&line.args, &mut Control::default())
}

/// Embedded drawings at another size, as JPEG.
fn jpegs(folder: &Path, pixels: usize) -> Result<Vec<Vec<u8>>> {
    let dataset = folder.join("images");
    write_dataset(&dataset, 72, ShardLimits::default(), Split::Train, Some(IMAGES), &mut Control::default())?;
    let dataset = Dataset::open(&dataset)?;
    let encode = |index| -> Result<Vec<u8>> {
        let sample = dataset.get(index)?;
        let image = RgbImage::decode(sample.key(), sample.part("png")?)?.resize(pixels, pixels, Filter::Bicubic)?;
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 95)
            .encode(image.data(), pixels as u32, pixels as u32, ExtendedColorType::Rgb8)
            .map_err(|e| Error::Usage(format!("images of {pixels} pixels: {e}")))?;
        Ok(jpeg)
    };
    (0..dataset.len().min(IMAGES)).map(encode).collect()
}

fn reply(image: &[u8]) -> Vec<u8> {
    let length = image.len();
    let mut reply =
        format!("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    reply.extend_from_slice(image);
    reply
}

/// Answers the requests of one connection, each by the image that its number stands for.
async fn serve(mut stream: TcpStream, replies: std::sync::Arc<Vec<Vec<u8>>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(1024);
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 || head.len() > LONGEST_HEAD {
                return Ok(());
            }
        }
        let digits = head.iter().skip_while(|byte| !byte.is_ascii_digit()).take_while(|byte| byte.is_ascii_digit());
        let number =
            digits.fold(0usize, |number, digit| number.wrapping_mul(10).wrapping_add(usize::from(digit - b'0')));
        stream.write_all(&replies[number % replies.len()]).await?;
    }
}
