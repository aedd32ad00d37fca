"""`python -m tests.campaigns NAME`: run a campaign, and print its faults."""

import argparse
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
# Attacks are forked from this process, where the tokenizers' threads wouldn't live on.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tests.campaigns import engines, hostile, inputs, kills

CAMPAIGNS = {
    "hostile-folders": hostile.attack_folders,
    "hostile-metadata": hostile.attack_metadata,
    "hostile-inputs": inputs.attack_inputs,
    "kills": kills.kill_runs,
    "changes": kills.change_inputs,
    "ray-data": engines.kill_ray_data,
    "spark": engines.kill_spark,
    "ray-runs": engines.kill_ray_runs,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CAMPAIGNS)
    parser.add_argument("--number", type=int, help="a sample of so many; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count, faults = CAMPAIGNS[options.name](options.number, options.seed)
    print("\n".join(faults))
    print(f"{options.name}: {count} attacks, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
