/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-snap: an empty differencing child per disk, all or none. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "snap.h"

static const char help[] =
	"Usage: vhd-snap [OPTION]... PARENT...\n"
	"       vhd-snap [OPTION]... --live=[DISK=]SOCKET... [PARENT...]\n"
	"\n"
	"Make an empty differencing child of each PARENT, all or none, and print the paths\n"
	"of the children. With --live the servers of the disks switch to them.\n"
	"\n"
	"  -o, --output=CHILD         name of the child (one PARENT only)\n"
	"      --directory=DIR        put the children into DIR, not beside their parents\n"
	"      --live=[DISK=]SOCKET   control socket of the nbdkit that serves a disk; DISK is\n"
	"                             checked: its path, or its name in the VM (repeatable)\n"
	"  -f, --force                replace an existing CHILD\n"
	"  -n, --dry-run              check everything and change nothing\n"
	"  -0, --null                 end each printed path with a NUL byte, not a newline\n"
	"      --json                 print one JSON object instead of paths\n"
	"      --parent-dir=DIR       parents may also lie below DIR (repeatable)\n"
	"      --parent-anywhere      parents may lie anywhere\n"
	"  -q, --quiet                no notes on stderr\n"
	"  -h, --help                 this text\n"
	"  -V, --version              the version\n";

enum { OPT_DIRECTORY = CLI_TOOL, OPT_LIVE };

/* Names */

/* Length of NAME without its extension and without the suffix that an earlier snapshot added. */
static size_t stem_length(const char *name)
{
	static const char form[] = "_xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	const size_t len = sizeof(form) - 1;
	const char *dot = strrchr(name, '.');
	size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name), i;

	if (n <= len)
		return n;
	for (i = 0; i < len; i++) {
		char c = name[n - len + i];

		if (form[i] == 'x' ? !strchr("0123456789ABCDEFabcdef", c) : c != form[i])
			return n;
	}
	return n - len;
}

/* PARENT's stem and a unique suffix, as Hyper-V does, in DIR or beside the file PARENT itself. */
static char *default_child(const char *parent, const char *dir, struct img_err *err)
{
	char *real = realpath(parent, NULL), *folder = NULL, *name = NULL, uuid[IMG_UUID_STR];
	uint8_t bytes[16];
	struct stat st;
	const char *base;
	char *p;

	if (!real) {
		img_err_errno(err, errno, "%s", parent);
		return NULL;
	}
	base = io_basename(real);
	if (!dir)
		dir = folder =
			io_dirname(lstat(parent, &st) == 0 && S_ISLNK(st.st_mode) ? real : parent);
	img_uuid_new(bytes);
	img_uuid_str(bytes, uuid);
	for (p = uuid; *p; p++)
		if (*p >= 'a' && *p <= 'f')
			*p = (char)(*p - 'a' + 'A');
	if (!dir || asprintf(&name, "%s%s%.*s_%s.avhd", dir, dir[strlen(dir) - 1] == '/' ? "" : "/",
			     (int)stem_length(base), base, uuid) < 0) {
		name = NULL;
		snap_no_memory(err);
	}
	free(folder);
	free(real);
	return name;
}

static int name_children(struct snap_job *j, struct img_err *err)
{
	struct stat st;
	size_t i;

	if (j->directory && (stat(j->directory, &st) < 0 || !S_ISDIR(st.st_mode)))
		return img_err_set(err, IMG_CANTCREAT, "%s: no such folder", j->directory);
	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];

		s->child =
			j->output ? strdup(j->output) : default_child(s->parent, j->directory, err);
		if (!s->child)
			return snap_no_memory(err);
	}
	return 0;
}

/* Checks before anything is made */

/* How the parent is opened: live, the plugin holds it locked, and checks the child itself. */
static struct img_open parent_opts(const struct snap_job *j)
{
	struct img_open opts = j->common.open;

	opts.unlocked = j->live;
	return opts;
}

static int check_existing(const struct snap_job *j, const struct snap *s, struct img_chain *parent,
			  struct img_err *err)
{
	struct img_open opts = {.writable = true, .single = true};
	struct img_err why = {0};
	struct img_chain *c = NULL;
	struct stat st;

	if (lstat(s->child, &st) < 0)
		return 0;
	if (!j->force)
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: exists; nothing is overwritten without --force", s->child);
	if (stat(s->child, &st) < 0)
		return 0; /* a symlink to nothing */
	if (img_find_layer(parent, s->child, &why) >= 0)
		return img_err_set(err, IMG_DATA, "%s: belongs to the chain of %s", s->child,
				   s->parent);
	img_err_clear(&why);
	if (img_open(&c, s->child, &opts, &why) < 0 && why.code == IMG_AGAIN)
		return img_err_set(err, why.code, "%s", why.msg);
	img_close(c);
	return 0;
}

static int check_disks(const struct snap_job *j, struct img_err *err)
{
	struct img_open opts = parent_opts(j);
	size_t i;

	for (i = 0; i < j->n; i++) {
		const struct snap *s = &j->snaps[i];
		struct img_chain *c = NULL;
		int ret = img_open(&c, s->parent, &opts, err);

		if (ret == 0)
			ret = check_existing(j, s, c, err);
		if (ret == 0 && img_layers(c) == IMG_MAX_LAYERS)
			ret = img_err_set(err, IMG_DATA, "%s: has %d layers, no more are allowed",
					  s->parent, IMG_MAX_LAYERS);
		img_close(c);
		if (ret < 0)
			return -1;
	}
	return 0;
}

/* All or none */

int snap_interrupted(struct img_err *err)
{
	if (cli_interrupted())
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

static int create_children(struct snap_job *j, struct img_err *err)
{
	struct img_open opts = parent_opts(j);
	size_t i;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];

		if (snap_interrupted(err) < 0 ||
		    img_snapshot(s->parent, s->child, &opts, j->force, err) < 0)
			return -1;
		s->created = true;
	}
	return 0;
}

static void remove_child(struct snap *s)
{
	struct img_err err = {0};

	if (!s->created || s->committed)
		return;
	if (s->keep) {
		cli_warn("%s: kept, because %s may name it; it is empty and hides nothing",
			 s->child, s->pointer);
		return;
	}
	if (io_unlink(s->child, &err) < 0)
		cli_warn("%s", err.msg);
	s->created = false;
}

static void undo(struct snap_job *j)
{
	for (size_t i = j->n; i-- > 0;) {
		snap_withdraw(&j->snaps[i]);
		remove_child(&j->snaps[i]);
	}
}

/* Results */

static bool is_result(const struct snap_job *j, const struct snap *s)
{
	return !j->live || j->dry_run || s->committed;
}

static bool any_committed(const struct snap_job *j)
{
	size_t i;

	for (i = 0; i < j->n; i++)
		if (j->snaps[i].committed)
			return true;
	return false;
}

static void print_json(const struct snap_job *j)
{
	const char *comma = "";
	size_t i;

	printf("{\"version\":1,\"snapshots\":[");
	for (i = 0; i < j->n; i++) {
		const struct snap *s = &j->snaps[i];

		if (!is_result(j, s))
			continue;
		printf("%s{\"parent\":", comma);
		cli_json_string(stdout, s->parent);
		printf(",\"child\":");
		cli_json_string(stdout, s->child);
		if (s->committed)
			printf(",\"blocked_us\":%llu", (unsigned long long)s->blocked_us);
		printf("}");
		comma = ",";
	}
	printf("]}\n");
}

static void print_children(const struct snap_job *j)
{
	size_t i;

	if (j->json) {
		print_json(j);
		return;
	}
	for (i = 0; i < j->n; i++)
		if (is_result(j, &j->snaps[i]))
			printf("%s%c", j->snaps[i].child, j->null ? '\0' : '\n');
}

/* The command line */

struct snap *snap_add(struct snap_job *j)
{
	struct snap *s = realloc(j->snaps, (j->n + 1) * sizeof(*s));

	if (!s)
		return NULL;
	j->snaps = s;
	s = &j->snaps[j->n++];
	memset(s, 0, sizeof(*s));
	s->fd = -1;
	return s;
}

static void parse(struct snap_job *j, int argc, char **argv, struct img_err *err)
{
	static const struct option options[] = {
		{"output", required_argument, NULL, 'o'},
		{"directory", required_argument, NULL, OPT_DIRECTORY},
		{"live", required_argument, NULL, OPT_LIVE},
		{"force", no_argument, NULL, 'f'},
		{"dry-run", no_argument, NULL, 'n'},
		{"null", no_argument, NULL, '0'},
		{"json", no_argument, NULL, CLI_JSON},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{"quiet", no_argument, NULL, 'q'},
		CLI_CHAIN_LONG,
		{0},
	};
	int opt;

	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "o:fn0", options, NULL)) != -1) {
		if (opt == 'o')
			j->output = optarg;
		else if (opt == OPT_DIRECTORY)
			j->directory = optarg;
		else if (opt == OPT_LIVE)
			snap_add_live(j, optarg, err);
		else if (opt == 'f')
			j->force = true;
		else if (opt == 'n')
			j->dry_run = true;
		else if (opt == '0')
			j->null = true;
		else if (opt == CLI_JSON)
			j->json = true;
		else if (!cli_common(&j->common, opt, optarg))
			cli_usage("unknown option");
	}
	j->live = j->n > 0;
	if (!j->live && optind == argc)
		cli_usage("no PARENT given");
	if (j->output && j->directory)
		cli_usage("--output and --directory exclude each other");
	if (j->output && (j->live ? j->n : (size_t)(argc - optind)) > 1)
		cli_usage("--output is for one PARENT only");
	if ((j->output && !*j->output) || (j->directory && !*j->directory))
		cli_usage("an empty name");
}

/* Fills in the parents, from the command line or from the servers. */
static int find_parents(struct snap_job *j, char *const *parents, size_t n, struct img_err *err)
{
	if (j->live)
		return snap_find_live(j, parents, n, err);
	for (size_t i = 0; i < n; i++) {
		struct snap *s = snap_add(j);

		if (!s || !(s->parent = strdup(parents[i])))
			return snap_no_memory(err);
	}
	return 0;
}

static void job_free(struct snap_job *j)
{
	size_t i;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];

		if (s->fd >= 0)
			close(s->fd);
		free(s->parent);
		free(s->child);
		free(s->socket);
		free(s->disk);
		free(s->pointer);
	}
	free(j->snaps);
}

int main(int argc, char **argv)
{
	struct snap_job j = {0};
	struct img_err err = {0};
	int ret = -1;

	cli_init(argv, "vhd-snap", help);
	cli_common_init(&j.common);
	parse(&j, argc, argv, &err);
	cli_catch_signals();
	if (!err.code && find_parents(&j, argv + optind, (size_t)(argc - optind), &err) == 0 &&
	    name_children(&j, &err) == 0 && check_disks(&j, &err) == 0)
		ret = j.dry_run ? 0 : create_children(&j, &err);
	if (ret == 0 && j.live && !j.dry_run)
		ret = snap_switch(&j, &err);
	if (ret < 0)
		undo(&j);
	if (ret == 0 || any_committed(&j))
		print_children(&j);
	job_free(&j);
	return cli_exit(ret < 0 ? cli_fail(&err) : 0);
}
