/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-reparent: the link of a child to its parent, mended after a move. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "io.h"

static const char help[] =
	"Usage: vhd-reparent [options] --parent=FILE CHILD\n"
	"Mend the link of a differencing disk to its parent after a move.\n"
	"\n"
	"      --parent=FILE    the parent where it is now\n"
	"  -f, --force          take FILE even if it is not the parent that CHILD names\n"
	"  -n, --dry-run        only check\n"
	"      --json           report as JSON\n" CLI_HELP_CHAIN CLI_HELP_COMMON;

enum { OPT_PARENT = CLI_TOOL };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"parent", required_argument, NULL, OPT_PARENT},
	{"force", no_argument, NULL, 'f'},
	{"dry-run", no_argument, NULL, 'n'},
	{"json", no_argument, NULL, CLI_JSON},
	{NULL, 0, NULL, 0},
};

struct job {
	struct cli_common common;
	const char *child, *parent;
	bool force, dry_run, json;
};

/* Whoever opens the chain later has to be told where the parent is. */
static void warn_outside(const struct job *j)
{
	char *child = realpath(j->child, NULL), *parent = realpath(j->parent, NULL);
	char *from = child ? io_dirname(child) : NULL, *to = parent ? io_dirname(parent) : NULL;

	if (from && to && strcmp(from, to) != 0)
		cli_warn("%s: its parent is in another folder: opened only with --parent-dir=%s",
			 j->child, to);
	free(child);
	free(parent);
	free(from);
	free(to);
}

static void uuid_text(const uint8_t uuid[16], char out[IMG_UUID_STR])
{
	static const uint8_t none[16];

	if (memcmp(uuid, none, 16) == 0)
		snprintf(out, IMG_UUID_STR, "none");
	else
		img_uuid_str(uuid, out);
}

static void json_uuid(const char *key, const char *uuid)
{
	printf(",\"%s\":", key);
	if (strcmp(uuid, "none") == 0)
		fputs("null", stdout);
	else
		cli_json_string(stdout, uuid);
}

static void report(const struct job *j, const struct img_reparent_plan *p)
{
	char old[IMG_UUID_STR], new[IMG_UUID_STR];

	uuid_text(p->old_uuid, old);
	uuid_text(p->new_uuid, new);
	if (p->other && !j->common.quiet)
		cli_warn(
			"%s: %s takes the place of another parent (%s): its UUID %s is recorded, not %s",
			j->child, j->parent, p->why, new, old);
	if (!j->common.quiet)
		warn_outside(j);
	if (!j->json) {
		cli_print_text(stdout, j->child, "");
		fputs(p->changes ? j->dry_run ? ": would be linked to " : ": linked to "
				 : ": already linked to ",
		      stdout);
		cli_print_text(stdout, j->parent, "");
		putchar('\n');
		return;
	}
	fputs("{\"version\":1,\"file\":", stdout);
	cli_json_string(stdout, j->child);
	fputs(",\"parent\":", stdout);
	cli_json_string(stdout, j->parent);
	json_uuid("parent_uuid", new);
	json_uuid("old_parent_uuid", old);
	printf(",\"forced\":%s,\"changed\":%s,\"dry_run\":%s}\n", p->other ? "true" : "false",
	       p->changes && !j->dry_run ? "true" : "false", j->dry_run ? "true" : "false");
}

int main(int argc, char **argv)
{
	struct img_reparent_plan plan;
	struct img_err err = {0};
	struct job j = {0};
	int opt;

	cli_init(argv, "vhd-reparent", help);
	cli_common_init(&j.common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "fn", options, NULL)) != -1) {
		if (cli_common(&j.common, opt, optarg))
			continue;
		if (opt == OPT_PARENT)
			j.parent = optarg;
		j.force |= opt == 'f';
		j.dry_run |= opt == 'n';
		j.json |= opt == CLI_JSON;
	}
	if (argc - optind != 1)
		cli_usage(argc == optind ? "CHILD is missing" : "one CHILD only");
	if (!j.parent)
		cli_usage("--parent is needed");
	j.child = argv[optind];
	cli_catch_signals();
	if (img_reparent_plan(j.child, j.parent, &j.common.open, j.force, &plan, &err) < 0 ||
	    (!j.dry_run && plan.changes &&
	     img_reparent(j.child, j.parent, &j.common.open, j.force, &err) < 0))
		return cli_exit(cli_fail(&err));
	report(&j, &plan);
	return cli_exit(0);
}
