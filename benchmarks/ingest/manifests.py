"""Manifests of made-up records, about 1.3 kB each."""

import json
import random
from pathlib import Path
from typing import Any

_WORDS = (
    "rue", "angle", "avenue", "édifice", "façade", "église", "marché", "tramway", "neige", "foule", "défilé", "pont",
    "canal", "quai", "usine", "ouvriers", "enfants", "école", "parc", "fontaine", "statue", "place", "hôtel", "gare",
    "wagon", "automobile", "cheval", "affiche", "vitrine", "magasin",
)  # fmt: skip


def record(number: int, rng: random.Random) -> dict[str, Any]:
    """Return one record; two of three numbers share their picture with a neighbour."""
    picture = number - (number % 3 == 2)
    call = f"VM97,S3,D{picture % 99:02d},P{picture}"
    title = call if picture % 33 else f"Rue {rng.choice(_WORDS).title()} {picture}"
    date = f"{1860 + picture % 120}"
    text = " ".join(rng.choices(_WORDS, k=18)).capitalize() + "."
    url = f"http://archive-{picture % 2}.example.org/phototheque/jpeg/VM97-S3-{picture:07d}.jpg"
    return {
        "metadata_filename": f"archive_metadata_{number}.json",
        "image_filename": f"archive_image_{number}.jpg",
        "image_exists": True,
        "image_size_bytes": rng.randrange(20_000, 900_000),
        "name": title,
        "description": text,
        "attributes": [
            {"trait_type": "Date", "value": date},
            {"trait_type": "Cote", "value": call},
            {"trait_type": "Credits", "value": "Archives de la Ville"},
        ],
        "external_url": url,
        "portal_match": True,
        "portal_record": {"_id": number, "Titre": title, "Description": text, "Date": date, "Fichier jpg": url},
        "attributes_map": {"Date": date, "Cote": call, "Credits": "Archives de la Ville"},
        "raw_description": text,
        "description_source": "synthetic" if number % 90 else "original",
        "description_language": "fr",
        "cote": call,
        "metadata_quality": {"description_source": "synthetic", "quality_flags": ["synthetic-description"]},
    }


def write_manifest(path: Path, records: int) -> None:
    """Write ``records`` lines; the same ones every time."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            file.write(json.dumps(record(number, rng), ensure_ascii=False, separators=(",", ":")) + "\n")
