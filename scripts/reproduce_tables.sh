#!/usr/bin/env bash
# The tables of the papers from raw data: downloads, cuts slides, trains, compares.   scripts/reproduce_tables.sh --help
# Run it again to resume.
set -euo pipefail

usage() {
    cat <<'TEXT'
scripts/reproduce_tables.sh [--list] [--reduced] [--root DIR] [--out DIR] [--device auto|cpu|cuda] [TABLE...]

TABLE      camelyon16  idc  pcam   (default: all of them, one after the other)
--list     show what each makes, the published numbers and the cost; run nothing
--reduced  synthetic tissue instead of the data, nets of a few channels: minutes on two CPU cores; its numbers mean nothing
--root     folder of the data sets      (default: $GAN_UAD_DATA, else data)
--out      folder of runs and tables    (default: reproduced)
Unpack the set "idc" by hand after its download. "camelyon16" takes about 750 GB of disk.
TEXT
}

list() {
    cat <<'TEXT'
Costs are estimates, in days of one data-centre GPU, from published speeds of the nets. None was measured here.

camelyon16   Table 1 and 2 of Stepec & Skocaj 2020, from slides
             download 750 GB; tiles: about 1 CPU day per size; trainings: DCGAN and WGAN 64 px about 0.5 GPU days together, PGAN 64 / 256 px 1 / 5,
             StyleGAN 64 / 256 px 3 / 15, StyleGAN2-E 64 / 256 / 512 px 3 / 14 / 35 (and once more 512 px for tumour), classifiers 1:
             about 115 GPU days in all; on 4 GPUs (torchrun, --shard) a month
  published  FID, normals    DCGAN   WGAN   PGAN   StyleGAN   StyleGAN2-E
               64 px         88.52   12.65  18.89    7.15        6.64
              256 px             -       -  17.82    5.57        5.24
              512 px             -       -      -       -        2.93
             accuracy % of DenseNet121 on real / generated patches: 64 px 88.23 / 87.05 (WGAN), 512 px 98.89 / 98.34 (StyleGAN2)

idc          The autoencoders of Sikdar et al. on breast tissue, by patch as published and by patient
             download 1.6 GB; 20 trainings of at most 500 kimg and two of the supervised reference: about 1 GPU day, about 8 CPU days on 2 cores
  published                VAE      ConvVAE   Attn-ConvVAE   U-Net frozen   U-Net unfrozen
             reconstr.  1075.94      424.14      374.57         639.11         540.59
             KL           48.71      261.09      392.12          20.01          12.35
             accuracy %   54.43       65.58       57.89          51.78          53.99
             F1            0.41        0.64        0.63           0.65           0.64
             AUC           0.53        0.70        0.60           0.50           0.53

pcam         The same tables for open patches that fit a disk: detectors, distances of generators, Table 2. There are no published numbers
             download 8 GB; PGAN and StyleGAN (GPU) 1 and 3 days, the rest about 2 days on 2 CPU cores
TEXT
}

reduced="" root="${GAN_UAD_DATA:-data}" out="reproduced" device="auto" tables=()
while (($#)); do
    case "$1" in
        --list) list; exit 0 ;;
        --help | -h) usage; exit 0 ;;
        --reduced) reduced="--reduced"; shift ;;
        --root | --out | --device)
            (($# > 1)) || { echo "$1 needs a value" >&2; exit 2; }
            printf -v "${1#--}" '%s' "$2"; shift 2 ;;
        camelyon16 | idc | pcam) tables+=("$1"); shift ;;
        *) echo "unknown: $1" >&2; usage >&2; exit 2 ;;
    esac
done
((${#tables[@]})) || tables=(camelyon16 idc pcam)

say() { echo "+ $*" >&2; "$@"; }

benchmark() { # NAME [OPTIONS]; a cell that fails is reported and stops no other
    local name="$1"; shift
    say gan-uad benchmark "$name" $reduced --root "$root" --out "$out/$name" --device "$device" "$@" || failed=1
}

camelyon16() {
    if [[ -z "$reduced" ]]; then
        say gan-uad download camelyon16 --out "$root"
        for size in 64 256 512; do # the paper's 1000 patches per slide with tissue >= 90 % are the defaults of tile
            say gan-uad tile "$root"/camelyon16/images/*.tif --annotations "$root/camelyon16/annotations" --unannotated normal \
                --size "$size" --mpp 0.5 --out "$root/camelyon16_$size"
        done
    fi
    benchmark camelyon16 --only generation --only classification
}

idc() {
    if [[ -z "$reduced" && ! -d "$root/idc" ]]; then
        say gan-uad download idc --out "$root"
        echo "unpack $root/IDC_regular_ps50_idx5.zip into $root/idc, then run this again" >&2
        exit 1
    fi
    benchmark idc
}

pcam() {
    if [[ -z "$reduced" ]]; then
        say gan-uad download pcam --out "$root"
        benchmark pcam --data "pcam=$root/pcam"
    else
        benchmark pcam
    fi
}

failed=0
for table in "${tables[@]}"; do "$table"; done
for table in "${tables[@]}"; do echo "$out/$table/results.md"; done
exit "$failed"
