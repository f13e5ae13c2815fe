"""The page's texts in Russian, by their English."""

from __future__ import annotations

RUSSIAN = {
    # the page
    "Chat": "Чат",
    "Live": "Камера",
    "Inside": "Внутри",
    "Compare": "Сравнение",
    "Models": "Модели",
    "with {model}, on this machine": "с моделью {model}, на этом компьютере",
    "Sorry": "Не вышло",
    "The demo has ended": "Демонстрация завершена",
    "Nothing answers at this address any more. Start edgevlm demo again, then go on here.": (
        "По этому адресу больше никто не отвечает. Запустите edgevlm demo снова и продолжайте здесь."
    ),
    "Still nothing answers. Start edgevlm demo again on the same port.": (
        "Ответа всё ещё нет. Запустите edgevlm demo снова на том же порту."
    ),
    "Try again": "Попробовать снова",
    "Picture": "Изображение",
    # names that Gradio gives in English only
    "Close": "Закрыть",
    "Copy message": "Копировать сообщение",
    "Download": "Скачать",
    "Exit fullscreen mode": "Выйти из полноэкранного режима",
    "Fullscreen": "Во весь экран",
    "Multimedia input field": "Поле вопроса",
    "Remove file": "Убрать файл",
    "Reset to default value": "Вернуть значение по умолчанию",
    "Scroll down": "Прокрутить вниз",
    "Stop": "Остановить",
    "Submit": "Отправить",
    "Upload a file": "Загрузить файл",
    "Uploaded files": "Загруженные файлы",
    "Uploading": "Загрузка",
    "chatbot conversation": "Разговор",
    "clear input": "Очистить",
    "{name}: number": "{name}: число",
    "{name}: slider": "{name}: ползунок",
    "Example: {name}": "Пример: {name}",
    "Question: {name}": "Вопрос: {name}",
    "Answer: {name}": "Ответ: {name}",
    # Chat
    "Model": "Модель",
    "Conversation": "Разговор",
    "Add a picture and ask about it, or take an example": (
        "Добавьте картинку и задайте вопрос или возьмите пример"
    ),
    "What is in the picture?": "Что на картинке?",
    "Where is the key?": "Где ключ?",
    "What changed?": "Что изменилось?",
    "What color is it?": "Какого это цвета?",
    "Question": "Вопрос",
    "Ask about a picture": "Спросите о картинке",
    "Edit the last question": "Изменить последний вопрос",
    "Copy the conversation": "Скопировать разговор",
    "Settings": "Настройки",
    "Temperature": "Температура",
    "0 takes the most likely token each time": "0: каждый раз самый вероятный токен",
    "Longest answer": "Наибольшая длина ответа",
    "tokens": "в токенах",
    "Detail of pictures": "Подробность картинок",
    "for models that split pictures into tiles": "для моделей, которые делят картинки на части",
    "the model's usual": "обычная для модели",
    "low": "низкая",
    "high": "высокая",
    "automatic": "автоматическая",
    "System prompt": "Системная инструкция",
    "none": "нет",
    "Keep how likely each token was, for Inside": (
        "Сохранять вероятность каждого токена для вкладки «Внутри»"
    ),
    "without it, answers that repeat come faster": "без этого повторные ответы приходят быстрее",
    "Webcam": "Веб-камера",
    "There is no question to answer again.": "Нет вопроса, на который можно ответить ещё раз.",
    "There is no question yet; write one.": "Вопроса ещё нет; напишите его.",
    "The question is empty. Write one, or add a picture.": (
        "Вопрос пуст. Напишите его или добавьте картинку."
    ),
    "A picture did not get to the server, so nothing was sent. Add it again.": (
        "Картинка не дошла до сервера, поэтому ничего не отправлено. Добавьте её ещё раз."
    ),
    "{name} has {count} frames or pages. The model sees the first one.": (
        "Кадров или страниц в {name}: {count}. Модель видит только первый кадр или первую страницу."
    ),
    "{name} is a folder. Open it, and drop the pictures in it.": (
        "{name} — это папка. Откройте её и перетащите картинки из неё."
    ),
    "Nothing was said yet; there is nothing to copy.": "Ещё ничего не сказано: копировать нечего.",
    "Loading {model}: {percent}": "Загрузка {model}: {percent}",
    "stopped": "остановлено",
    "First token: {first} ms · tokens: {count}": "Первый токен: {first} мс · токенов: {count}",
    "First token: {first} ms · {speed} tokens per second · tokens: {count}": (
        "Первый токен: {first} мс · токенов в секунду: {speed} · токенов: {count}"
    ),
    "cut off at the length in the settings": "оборвано на длине из настроек",
    "the boxes are on the last picture": "рамки относятся к последней картинке",
    "Describe": "Описать",
    "Find": "Найти",
    "Count": "Сосчитать",
    "Read": "Прочитать",
    "Describe the picture.": "Опиши картинку.",
    "thing": "предмет",
    "This model sees drawn pictures only.": "Эта модель видит только рисунки.",
    "It knows shapes, things as emoji draw them and printed words. About photographs it guesses. "
    "Make a model for photographs with this command, then choose it here:": (
        "Она знает фигуры, предметы, как их рисуют эмодзи, и печатные слова. О фотографиях она "
        "гадает. Создайте модель для фотографий этой командой, а затем выберите её здесь:"
    ),
    "Send (Enter; Shift+Enter breaks the line)": "Отправить (Enter; Shift+Enter — новая строка)",
    "Stop (Escape)": "Остановить (Escape)",
    "Add pictures; they can be pasted and dropped, too": (
        "Добавить картинки; их можно также вставить или перетащить"
    ),
    "Remove this picture": "Убрать эту картинку",
    "Copy": "Скопировать",
    "Copied": "Скопировано",
    "Picture": "Картинка",
    "Enlarge the picture": "Увеличить картинку",
    "Close": "Закрыть",
    "You": "Вы",
    # conversations and settings
    "New conversation": "Новый разговор",
    "Conversations": "Разговоры",
    "Search": "Поиск",
    "Search in titles and texts": "Поиск в названиях и текстах",
    "Save as a file": "Сохранить в файл",
    "Save as Markdown": "Сохранить как Markdown",
    "Open a file": "Открыть файл",
    "This conversation went on in another tab. What was said here is kept as a copy.": (
        "Этот разговор продолжили в другой вкладке. Сказанное здесь сохранено отдельной копией."
    ),
    "{count} conversations are kept at most; the oldest is gone: {title}": (
        "Хранится не больше {count} разговоров; удалён самый старый: {title}"
    ),
    "No conversation has this in its title or text.": (
        "Ни в названиях, ни в текстах разговоров этого нет."
    ),
    "Nothing is kept yet. Ask something, and it will be.": (
        "Пока ничего не сохранено. Задайте вопрос, и разговор появится здесь."
    ),
    "without words": "без слов",
    "Take back": "Вернуть",
    "deleted": "удалён",
    "Rename": "Переименовать",
    "Delete": "Удалить",
    "The newest {count} are kept until edgevlm demo ends. Save those as files that you want for longer.": (
        "Последние {count} разговоров хранятся, пока работает edgevlm demo. "
        "Нужные надолго сохраните в файл."
    ),
    "The conversation is empty; there is nothing to save.": ("Разговор пуст; сохранять нечего."),
    "Reset the settings": "Сбросить настройки",
    "The model {model} that was chosen here is gone or broken; {first} answers now.": (
        "Выбранной здесь модели {model} больше нет или она повреждена; теперь отвечает {first}."
    ),
    # Live
    # Inside
    # Compare
    # Models
    "This model sees drawings only. In a photograph it guesses: see Models for one that sees photographs.": (
        "Эта модель видит только рисунки. На фотографиях она угадывает; где взять модель "
        "для фотографий, сказано на вкладке «Модели»."
    ),
    "A model for photographs comes from a checkpoint, with one command in the folder of edgevlm. "
    "It downloads about 500 MB; after that the network is not needed.": (
        "Модель для фотографий получают из контрольной точки одной командой в папке edgevlm. "
        "Загрузится около 500 МБ; дальше сеть не нужна."
    ),
}
