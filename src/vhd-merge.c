/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-merge: a child is folded into its parent, in place. */
#include "config.h"

#include <inttypes.h>

#include "cli.h"
#include "io.h"

static const char help[] =
	"Usage: vhd-merge [options] CHILD\n"
	"Fold a differencing disk into its parent, in place. Interrupted, the same\n"
	"command finishes it; what CHILD shows never changes.\n"
	"\n"
	"      --delete         delete CHILD once the parent is durable\n"
	"  -n, --dry-run        check everything, change nothing\n"
	"  -f, --force          even if a saved state depends on the disk\n"
	"      --json           report as JSON\n"
	CLI_HELP_CHAIN
	CLI_HELP_COMMON;

enum { OPT_DELETE = CLI_TOOL };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{ "delete", no_argument, NULL, OPT_DELETE },
	{ "dry-run", no_argument, NULL, 'n' },
	{ "force", no_argument, NULL, 'f' },
	{ "json", no_argument, NULL, CLI_JSON },
	{ NULL, 0, NULL, 0 },
};

struct job {
	struct cli_common common;
	bool del, dry_run, json;
	const char *child;
	struct img_merge_stats stats;
};

static int merge(struct job *j, struct img_chain *c, struct img_err *err)
{
	struct cli_progress progress;
	int rc;

	if (j->dry_run)
		return img_merge_plan(c, &j->stats, err);
	cli_progress_start(&progress, &j->common, "merge");
	rc = img_merge(c, cli_progress, &progress, &j->stats, err);
	cli_progress_end(&progress, j->stats.bytes);
	if (rc == 0 && j->del)
		rc = io_unlink(img_layer_real(c, 0), err);
	return rc;
}

static void report(const struct job *j, const struct img_chain *c)
{
	const struct img_merge_stats *s = &j->stats;
	char uuid[IMG_UUID_STR], moved[32], growth[32];

	if (!j->json && !j->dry_run) {
		printf("%s\n", img_layer_path(c, 1));
		return;
	}
	if (!j->json) {
		printf("%s into %s: %s to move, %" PRIu64 " new blocks, the parent grows by %s\n",
		       j->child, img_layer_path(c, 1), cli_human(s->bytes, moved), s->new_blocks,
		       cli_human(s->growth, growth));
		return;
	}
	fputs("{\"version\":1,\"child\":", stdout);
	cli_json_string(stdout, j->child);
	fputs(",\"parent\":", stdout);
	cli_json_string(stdout, img_layer_path(c, 1));
	fputs(",\"uuid\":", stdout);
	if (img_layer_info(c, 1)->has_uuid) {
		img_uuid_str(img_layer_info(c, 1)->uuid, uuid);
		cli_json_string(stdout, uuid);
	} else {
		fputs("null", stdout);
	}
	printf(",\"dry_run\":%s,\"deleted\":%s,\"bytes\":%" PRIu64 ",\"new_blocks\":%" PRIu64
	       ",\"growth\":%" PRIu64 ",\"space_free\":%" PRIu64 "}\n",
	       j->dry_run ? "true" : "false", j->del && !j->dry_run ? "true" : "false", s->bytes,
	       s->new_blocks, s->growth, s->space_free);
}

static void parse(int argc, char **argv, struct job *j)
{
	int opt;

	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "nf", options, NULL)) != -1) {
		if (cli_common(&j->common, opt, optarg))
			continue;
		j->del |= opt == OPT_DELETE;
		j->dry_run |= opt == 'n';
		j->json |= opt == CLI_JSON;
		j->common.open.ignore_saved_state |= opt == 'f';
	}
	if (argc - optind != 1)
		cli_usage(argc == optind ? "CHILD is missing" : "one CHILD only");
	j->child = argv[optind];
}

int main(int argc, char **argv)
{
	struct job j = { 0 };
	struct img_chain *c = NULL;
	struct img_err err = { 0 };
	int status = 0;

	cli_init(argv, "vhd-merge", help);
	cli_common_init(&j.common);
	parse(argc, argv, &j);
	cli_catch_signals();
	j.common.open.writable = j.common.open.merge = !j.dry_run;
	if (img_open(&c, j.child, &j.common.open, &err) == 0) {
		cli_warn_chain(&j.common, c);
		if (merge(&j, c, &err) == 0)
			report(&j, c);
	}
	if (err.code)
		status = cli_fail(&err);
	img_close(c);
	return cli_exit(status);
}
