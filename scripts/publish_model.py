"""Write the networks of a run into models/, as float16, with a model card.

    python scripts/publish_model.py RUN NAME --data "what it was trained on" --licence CC0 --command "gan-uad train ..." \
        [--scores FOLDER_OF_EVALUATE]

The file contains no paths of data or generator. The metrics of the card are those of `metrics.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gan_uad.checkpoint import build_networks, save_model
from gan_uad.errors import UserError
from gan_uad.files import read_json, sha256, write_text
from gan_uad.run import model_file
from gan_uad.tables import format_interval

MODELS = Path(__file__).parents[1] / "models"
MAX_BYTES = 12 << 20


def publish(run: Path, name: str) -> tuple[Path, dict[str, object]]:
    """Write `models/NAME.safetensors`; returns it and its description."""
    description, networks = build_networks(model_file(run))
    if not networks:
        raise UserError(f"{run} holds a fitted detector and no networks; name the run of a network")
    config = description["config"]
    config["name"], config["generator"], config["init_from"] = name, None, None
    config["optim"].pop("cnn", None)
    config["data"]["path"] = None
    kept = {key: value for key, value in description.items() if key not in {"format", "networks"}}
    file = MODELS / f"{name}.safetensors"
    save_model(file, networks, kept, half=True)
    if file.stat().st_size > MAX_BYTES:
        file.unlink()
        raise UserError(f"{file.name} would be larger than {MAX_BYTES >> 20} MiB; publish a smaller model")
    return file, description


def card(file: Path, description: dict, args: argparse.Namespace) -> str:
    """The model card as Markdown."""
    environment = read_json(args.run / "environment.json")
    config = description["config"]
    lines = [
        f"# {args.name}",
        "",
        "Research software, not a medical device.",
        "",
        f"- networks: {', '.join(spec['name'] for spec in description['networks'].values())}, {config['resolution']} px, float16",
        f"- trained by `{config['task']}` for {description['nimg'] / 1000:g} kimg on {description['train_images']:,} images: {args.data}",
        f"- licence of the data: {args.licence}",
        f"- commands: {'; '.join(f'`{command}`' for command in args.command)}",
        f"- commit {environment['git']}, torch {environment['packages']['torch']}, seed {environment['seed']}",
        f"- sha256 `{sha256(file)}`",
    ]
    for folder in args.scores:
        for model, result in read_json(folder / "metrics.json").items():
            if "auroc" in result:
                area = format_interval(*(result["auroc"][key] for key in ("value", "low", "high")))
                images = result["images"]
                lines.append(
                    f"- {folder.name}: AUROC of {model} {area}, {images['normal']} + {images['anomalous']} images"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", required=True)
    parser.add_argument("--licence", required=True)
    parser.add_argument("--command", action="append", required=True)
    parser.add_argument("--scores", type=Path, action="append", default=[])
    args = parser.parse_args()
    file, description = publish(args.run, args.name)
    write_text(file.with_suffix(".md"), card(file, description, args))
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
