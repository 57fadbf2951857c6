/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-merge: a child, or a chain of them, is folded into an ancestor, in place or in a new file. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli.h"

static const char help[] =
	"Usage: vhd-merge [options] CHILD\n"
	"Fold a differencing disk into its parent, in place. Interrupted, the same\n"
	"command finishes it; what CHILD shows never changes.\n"
	"\n"
	"      --to=ANCESTOR    fold all that lies above ANCESTOR into it\n"
	"  -o, --output=FILE    leave the chain as it is, make a new disk FILE\n"
	"      --delete         delete the merged files once the parent is durable\n"
	"      --again          even if CHILD was merged before and its parent was written\n"
	"                       to since: what CHILD holds comes back\n"
	"  -n, --dry-run        check everything, change nothing\n"
	"  -f, --force          even if a saved state depends on the disk; replace FILE\n"
	"      --json           report as JSON\n" CLI_HELP_CHAIN CLI_HELP_COMMON;

enum { OPT_DELETE = CLI_TOOL, OPT_TO, OPT_AGAIN };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"to", required_argument, NULL, OPT_TO},
	{"output", required_argument, NULL, 'o'},
	{"delete", no_argument, NULL, OPT_DELETE},
	{"again", no_argument, NULL, OPT_AGAIN},
	{"dry-run", no_argument, NULL, 'n'},
	{"force", no_argument, NULL, 'f'},
	{"json", no_argument, NULL, CLI_JSON},
	{NULL, 0, NULL, 0},
};

struct job {
	struct cli_common common;
	bool dry_run, json, force;
	const char *child, *to, *output;
	struct img_merge merge;
	struct img_merge_stats stats;
	struct cli_progress progress;
};

static int flatten(struct job *j, struct img_chain *c, struct img_err *err)
{
	unsigned last = j->to ? img_merge_target(c) : img_layers(c) - 1;
	struct img_err ignored = {0};

	if (access(j->output, F_OK) == 0 && img_find_layer(c, j->output, &ignored) >= 0)
		return img_err_set(err, IMG_USAGE, "%s: is a part of the chain", j->output);
	return img_flatten(c, last, j->output, j->force, &j->merge, &j->stats, err);
}

static int merge(struct job *j, struct img_chain *c, struct img_err *err)
{
	int rc;

	cli_progress_start(&j->progress, &j->common, "merge");
	if (j->dry_run)
		rc = img_merge_plan(c, &j->merge, &j->stats, err);
	else if (j->output)
		rc = flatten(j, c, err);
	else
		rc = img_merge(c, &j->merge, &j->stats, err);
	if (!j->dry_run || j->progress.shown)
		cli_progress_end(&j->progress, j->stats.bytes);
	return rc;
}

/* What it was merged into, and its UUID or null. */
static void report_json(const struct job *j, const char *parent, const struct img_info *info)
{
	const struct img_merge_stats *s = &j->stats;
	char uuid[IMG_UUID_STR];

	fputs("{\"version\":1,\"child\":", stdout);
	cli_json_string(stdout, j->child);
	fputs(",\"parent\":", stdout);
	cli_json_string(stdout, parent);
	fputs(",\"uuid\":", stdout);
	if (info && info->has_uuid) {
		img_uuid_str(info->uuid, uuid);
		cli_json_string(stdout, uuid);
	} else {
		fputs("null", stdout);
	}
	printf(",\"dry_run\":%s,\"deleted\":%s,\"already\":%s,\"layers\":%u,\"reparented\":%u,"
	       "\"bytes\":%" PRIu64 ",\"new_blocks\":%" PRIu64 ",\"growth\":%" PRIu64
	       ",\"space_free\":%" PRIu64 "}\n",
	       j->dry_run ? "true" : "false", j->merge.del && !j->dry_run ? "true" : "false",
	       s->already ? "true" : "false", s->layers, s->reparented, s->bytes, s->new_blocks,
	       s->growth, s->space_free);
}

static void report(const struct job *j, const struct img_chain *c)
{
	const struct img_merge_stats *s = &j->stats;
	unsigned to = img_merge_target(c);
	const char *parent = j->output ? j->output : img_layer_path(c, to);
	char moved[32], growth[32];

	if (s->already && !j->dry_run && !j->json && !j->common.quiet)
		cli_warn("%s: was merged into %s before: nothing to do%s", j->child, parent,
			 j->merge.del ? " but to delete it" : "");
	if (j->json)
		report_json(j, parent, j->output ? NULL : img_layer_info(c, to));
	else if (!j->dry_run)
		printf("%s\n", parent);
	else if (s->already)
		printf("%s into %s: nothing to do, it was merged already\n", j->child, parent);
	else
		printf("%s into %s: %s to move, %" PRIu64 " new blocks, the parent grows by %s\n",
		       j->child, parent, cli_human(s->bytes, moved), s->new_blocks,
		       cli_human(s->growth, growth));
}

/* A run that was cut short while it deleted files has left no chain to open. */
static bool clean_up(struct job *j, struct img_err *err)
{
	struct img_err e = {0};
	bool done = false;
	char *into = NULL;

	if (!j->merge.del || j->dry_run)
		return false;
	if (img_merge_clean_up(j->child, j->to, &j->common.open, &done, &into, &e) < 0) {
		*err = e;
		return false;
	}
	if (done) {
		img_err_clear(err);
		if (j->json)
			report_json(j, into, NULL);
		else
			printf("%s\n", into);
	}
	free(into);
	return done;
}

/* A disk in use is not the only reason that there may be: the others are named as well. */
static void plan_anyway(struct job *j)
{
	struct img_open open = j->common.open;
	struct img_err err = {0};
	struct img_chain *c = NULL;

	open.writable = false;
	open.unlocked = true;
	cli_progress_start(&j->progress, &j->common, "merge");
	if (img_open(&c, j->child, &open, &err) == 0 &&
	    img_merge_plan(c, &j->merge, &j->stats, &err) < 0)
		cli_fail(&err);
	img_close(c);
}

static void parse(int argc, char **argv, struct job *j)
{
	int opt;

	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "nfo:", options, NULL)) != -1) {
		if (cli_common(&j->common, opt, optarg))
			continue;
		if (opt == OPT_TO)
			j->to = optarg;
		else if (opt == 'o')
			j->output = optarg;
		j->merge.del |= opt == OPT_DELETE;
		j->merge.again |= opt == OPT_AGAIN;
		j->dry_run |= opt == 'n';
		j->json |= opt == CLI_JSON;
		j->force |= opt == 'f';
	}
	if (argc - optind != 1)
		cli_usage(argc == optind ? "CHILD is missing" : "one CHILD only");
	j->child = argv[optind];
	if (j->output && (j->merge.del || j->dry_run))
		cli_usage("--output leaves the chain as it is: not with %s",
			  j->dry_run ? "--dry-run" : "--delete");
	j->common.open.ignore_saved_state = j->force;
	j->common.open.merge = !j->output || j->to;
	j->common.open.merge_to = j->to;
	j->common.open.writable = !j->dry_run && !j->output;
	j->merge.open = &j->common.open;
	j->merge.progress = cli_progress;
	j->merge.ctx = &j->progress;
}

int main(int argc, char **argv)
{
	struct job j = {0};
	struct img_chain *c = NULL;
	struct img_err err = {0};
	int status = 0;

	cli_init(argv, "vhd-merge", help);
	cli_common_init(&j.common);
	parse(argc, argv, &j);
	cli_catch_signals();
	if (img_open(&c, j.child, &j.common.open, &err) == 0) {
		cli_warn_chain(&j.common, c);
		if (merge(&j, c, &err) == 0)
			report(&j, c);
	} else if (err.code == IMG_NOINPUT) {
		clean_up(&j, &err);
	}
	if (err.code) {
		status = cli_fail(&err);
		if (!c && err.code == IMG_AGAIN && !j.output)
			plan_anyway(&j);
	}
	img_close(c);
	return cli_exit(status);
}
