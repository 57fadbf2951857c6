/* SPDX-License-Identifier: BSD-2-Clause */
/* Marks are made durable beside the stream: it does not wait for the disk. */
#include "config.h"

#include <errno.h>
#include <pthread.h>

#include "partial_impl.h"

static void settle(struct partial *p, struct img_new *new)
{
	if (img_create_sync(new, &p->err) || partial_log_mark(p, &p->err))
		return;
	p->mark = p->next;
	p->image_end = p->next_end;
	p->complete = p->next_complete;
	p->marked = true;
}

/* The disk's work, beside the stream's: marks, and between them a start with what was written. */
static void *serve(void *arg)
{
	struct partial *p = arg;

	pthread_mutex_lock(&p->mutex);
	while (!p->quit) {
		struct img_new *new = p->new;

		if (p->busy) {
			pthread_mutex_unlock(&p->mutex);
			settle(p, new);
			pthread_mutex_lock(&p->mutex);
			p->busy = false;
			pthread_cond_broadcast(&p->change);
		} else if (p->begin) {
			p->begin = false;
			p->beginning = true;
			pthread_mutex_unlock(&p->mutex);
			img_writeback(img_new_chain(new));
			pthread_mutex_lock(&p->mutex);
			p->beginning = false;
			pthread_cond_broadcast(&p->change);
		} else {
			pthread_cond_wait(&p->change, &p->mutex);
		}
	}
	pthread_mutex_unlock(&p->mutex);
	return NULL;
}

static bool start(struct partial *p)
{
	if (!p->started)
		p->started = pthread_create(&p->thread, NULL, serve, p) == 0;
	return p->started;
}

/* For the mark that is under way; its failure is that of all that come. */
static int wait_mark(struct partial *p, struct img_err *err)
{
	pthread_mutex_lock(&p->mutex);
	while (p->busy)
		pthread_cond_wait(&p->change, &p->mutex);
	pthread_mutex_unlock(&p->mutex);
	return p->err.code ? img_err_set(err, p->err.code, "%s", p->err.msg) : 0;
}

int partial_wait(struct partial *p, struct img_err *err)
{
	int rc = wait_mark(p, err);

	pthread_mutex_lock(&p->mutex);
	p->begin = false;
	while (p->beginning)
		pthread_cond_wait(&p->change, &p->mutex);
	pthread_mutex_unlock(&p->mutex);
	return rc;
}

void partial_writeback(struct partial *p, struct img_new *new)
{
	if (!start(p))
		return;
	pthread_mutex_lock(&p->mutex);
	p->new = new;
	p->begin = true;
	pthread_cond_broadcast(&p->change);
	pthread_mutex_unlock(&p->mutex);
}

/* Hands the mark to the thread, or without one does what it would. */
static void hand_over(struct partial *p, struct img_new *new)
{
	if (!start(p)) {
		settle(p, new);
		return;
	}
	pthread_mutex_lock(&p->mutex);
	p->new = new;
	p->busy = true;
	p->begin = false;
	pthread_cond_broadcast(&p->change);
	pthread_mutex_unlock(&p->mutex);
}

int partial_set_mark(struct partial *p, struct img_new *new, const struct stream_mark *mark,
		     bool last, struct img_err *err)
{
	bool first;
	uint64_t id;

	if (wait_mark(p, err) || partial_log_chunks(p, err))
		return -1;
	first = !p->marked;
	if (img_create_settle(new, &p->next_end, err))
		return -1;
	if (partial_file_id(p->image, false, &id))
		return img_err_errno(err, errno, "%s: somebody removed the partial result",
				     p->file);
	if (!first && id != p->id)
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: its folder is another one than when it was begun", p->file);
	p->id = id;
	p->next = *mark;
	p->next_complete = last;
	/* The names must be durable before the mark counts. */
	if (first && io_sync_dir_of(p->path, err))
		return -1;
	hand_over(p, new);
	return last || !p->started ? partial_wait(p, err) : 0;
}

void partial_end_thread(struct partial *p)
{
	if (!p->started)
		return;
	pthread_mutex_lock(&p->mutex);
	p->quit = true;
	pthread_cond_broadcast(&p->change);
	pthread_mutex_unlock(&p->mutex);
	pthread_join(p->thread, NULL);
	p->started = false;
}
