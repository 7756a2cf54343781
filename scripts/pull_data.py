"""Download the data that dvc.lock names from the DVC remote, verify it and put it in place."""

from clearway.cli import DONE, parser, run


def main() -> int:
    arguments = parser(__doc__ or "").parse_args()
    from clearway.data_remote import pull
    from clearway.workspace import Workspace

    done = pull(Workspace(arguments.project))
    print(f"data: pulled {done} from {' and '.join(done.remotes)}; the rest was here")
    return DONE


if __name__ == "__main__":
    run(main)
