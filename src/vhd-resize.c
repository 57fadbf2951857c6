/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-resize: another size for a VHD. */
#include "config.h"

#include <inttypes.h>

#include "cli.h"

static const char help[] =
	"Usage: vhd-resize [options] --size=N FILE\n"
	"Make a VHD larger, or smaller where nothing is lost.\n"
	"\n"
	"      --size=N         the new size: bytes, or 512M, 10G, 2T\n"
	"  -f, --force          although the disk has children or a saved machine\n"
	"  -n, --dry-run        only check\n"
	"      --json           report as JSON\n" CLI_HELP_CHAIN CLI_HELP_COMMON;

enum { OPT_SIZE = CLI_TOOL };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"size", required_argument, NULL, OPT_SIZE},
	{"force", no_argument, NULL, 'f'},
	{"dry-run", no_argument, NULL, 'n'},
	{"json", no_argument, NULL, CLI_JSON},
	{NULL, 0, NULL, 0},
};

static void report(const char *path, const struct img_resize *r, bool json)
{
	char from[32], to[32];

	if (json) {
		fputs("{\"version\":1,\"file\":", stdout);
		cli_json_string(stdout, path);
		printf(",\"old_size\":%" PRIu64 ",\"size\":%" PRIu64 ",\"old_file_size\":%" PRIu64
		       ",\"file_size\":%" PRIu64 ",\"changed\":%s,\"dry_run\":%s}\n",
		       r->old_size, r->size, r->old_file_size, r->file_size,
		       r->size != r->old_size && !r->dry_run ? "true" : "false",
		       r->dry_run ? "true" : "false");
		return;
	}
	cli_print_text(stdout, path, "");
	if (r->size == r->old_size)
		printf(": has %" PRIu64 " bytes (%s) already\n", r->size, cli_human(r->size, to));
	else
		printf(": %s from %" PRIu64 " bytes (%s) to %" PRIu64 " (%s)\n",
		       r->dry_run ? "would be resized" : "resized", r->old_size,
		       cli_human(r->old_size, from), r->size, cli_human(r->size, to));
}

int main(int argc, char **argv)
{
	struct img_resize r = {0};
	struct img_err err = {0};
	struct cli_progress progress;
	struct cli_common common;
	bool json = false;
	int opt, rc;

	cli_init(argv, "vhd-resize", help);
	cli_common_init(&common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "fn", options, NULL)) != -1) {
		if (cli_common(&common, opt, optarg))
			continue;
		if (opt == OPT_SIZE && !cli_size(optarg, &r.size))
			cli_usage("--size: '%s' is not a size", optarg);
		r.force |= opt == 'f';
		r.dry_run |= opt == 'n';
		json |= opt == CLI_JSON;
	}
	if (argc - optind != 1)
		cli_usage(argc == optind ? "FILE is missing" : "one FILE only");
	if (r.size == 0)
		cli_usage("--size is needed, and not 0");
	cli_catch_signals();
	cli_progress_start(&progress, &common, "resize");
	rc = img_resize(argv[optind], &common.open, &r, cli_progress, &progress, &err);
	if (rc < 0)
		return cli_exit(cli_fail(&err));
	cli_progress_end(&progress, r.old_size > r.size ? r.old_size - r.size : 0);
	report(argv[optind], &r, json);
	return cli_exit(0);
}
