"""Upload the data that dvc.lock names, and that the DVC remote lacks."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.data_remote import push
    from clearway.workspace import Workspace

    done = push(Workspace(arguments.project))
    print(f"data: pushed {done} to {' and '.join(done.remotes)}; the rest was there")
    return DONE


if __name__ == "__main__":
    run(main)
