"""Check that a version may be released: three numbers, above every tag before."""

import subprocess

from clearway.cli import DONE, parser, run


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("version", metavar="VERSION", help="such as v1.4.0")
    arguments = options.parse_args()
    from clearway.versions import check_next

    command = ["git", "-C", str(arguments.project), "tag", "--list"]
    tags = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    before = check_next(arguments.version, tags)
    print(f"version: {arguments.version} after {before or 'none'}")
    return DONE


if __name__ == "__main__":
    run(main)
